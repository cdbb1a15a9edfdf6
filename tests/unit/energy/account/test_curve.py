"""A factor by tokens, learnt at powers of two, and power by the width of steps."""

import pytest

from greenllm.energy.account.curve import (
    DRAFTING,
    KNOTS,
    WIDTHS,
    Curve,
    PowerFit,
    between,
    place_of,
)


@pytest.mark.parametrize(
    ("tokens", "knot", "part"),
    [(0, 0, 0.0), (1, 0, 0.0), (2, 1, 0.0), (3, 1, 0.585), (64, 6, 0.0), (10**9, KNOTS - 2, 1.0)],
)
def test_tokens_lie_between_powers_of_two(tokens: float, knot: int, part: float) -> None:
    found, beyond = place_of(tokens)
    assert found == knot
    assert beyond == pytest.approx(part, abs=1e-3)


def test_a_curve_is_flat_until_it_has_seen_something() -> None:
    assert [Curve().at(tokens) for tokens in (1, 7, 500)] == [1.0, 1.0, 1.0]


def test_a_curve_learns_where_it_was_looked_at_and_is_flat_beyond() -> None:
    curve = Curve()
    for _ in range(200):
        curve.observe(4, 1.2)
        curve.observe(16, 0.8)
    assert curve.at(4) == pytest.approx(1.2, rel=0.02)
    assert curve.at(16) == pytest.approx(0.8, rel=0.02)
    assert curve.at(1) == pytest.approx(1.2, rel=0.02)
    assert curve.at(900) == pytest.approx(0.8, rel=0.02)


def test_one_wild_step_does_not_bend_a_curve_far() -> None:
    curve = Curve()
    for _ in range(200):
        curve.observe(4, 1.0)
    curve.observe(4, 1000.0)
    assert curve.at(4) < 1.3


def busy(**seconds: float) -> list[float]:
    """Seconds at so many tokens, such as t4=0.5."""
    found = [0.0] * WIDTHS
    for name, value in seconds.items():
        found[DRAFTING if name == "draft" else place_of(int(name[1:]))[0]] += value
    return found


def test_power_of_each_width_is_found_in_windows_that_mix_them() -> None:
    fit = PowerFit()
    for number in range(120):
        part = (number % 11) / 11
        drafting_s = (number % 3) / 10
        joules = 160 * part + 250 * (1 - part) + 50 * drafting_s
        fit.observe(busy(t1=part, t64=1 - part, draft=drafting_s), joules)
    assert fit.at(1) == pytest.approx(160, rel=0.03)
    assert fit.at(64) == pytest.approx(250, rel=0.03)
    assert between(fit.watts, 1024) == fit.at(64), "as the nearest width that was seen"
    assert fit.predict_j(busy(t1=2.0)) == pytest.approx(320, rel=0.03)
    assert fit.relative_error < 0.05


@pytest.mark.parametrize(("seconds", "joules"), [(0.0, 5.0), (1.0, 0.0)])
def test_windows_without_work_or_energy_teach_nothing(seconds: float, joules: float) -> None:
    fit = PowerFit()
    fit.observe(busy(t1=seconds), joules)
    assert (fit.num_windows, fit.watts) == (0, [1.0] * WIDTHS)
