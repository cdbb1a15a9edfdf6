"""The line through power and load: right watts, an honest interval, and refusals."""

import random

import pytest

from greenllm.energy.calibration.fit import FitError, PowerSample, fit_power


def _samples(
    idle_w: float, dynamic_w: float, noise_w: float = 0.0, seed: int = 1, each: int = 10
) -> list[PowerSample]:
    draw = random.Random(seed)
    loads = [0.1, 1.1, 2.1, 4.0] * each
    return [PowerSample(n, idle_w + dynamic_w * n + draw.gauss(0, noise_w)) for n in loads]


def test_a_line_is_found_as_it_is() -> None:
    fit = fit_power(_samples(40.0, 6.0))
    assert (fit.idle_w, fit.dynamic_w) == pytest.approx((40.0, 6.0))
    assert fit.uncertainty == pytest.approx(0.03), "the wall meter's own error is left"
    assert fit.num_samples == 40


def test_the_interval_holds_nine_of_ten_samples() -> None:
    """A line at idle, where it is widest: 40 W with 4 W of noise are ± 16.9 %, and 3 %."""
    hits, trials = 0, 400
    for seed in range(trials):
        fit = fit_power(_samples(40.0, 6.0, noise_w=4.0, seed=seed))
        truth_w = 40.0 + random.Random(-1 - seed).gauss(0, 4.0)
        hits += abs(truth_w - fit.idle_w) <= fit.uncertainty * fit.idle_w
    assert 0.87 <= hits / trials <= 0.95


def test_work_that_draws_differently_widens_the_interval() -> None:
    alike = fit_power(_samples(40.0, 6.0))
    mixed = fit_power(_samples(40.0, 5.0) + _samples(40.0, 7.0))
    assert mixed.dynamic_w == pytest.approx(6.0)
    assert mixed.uncertainty > 2 * alike.uncertainty


def test_few_samples_have_the_wider_interval_of_students_t() -> None:
    """Eight samples of ± 1 W around 100 W at both ends of 0 to 1: t(6) = 1.943."""
    values = [(0.0, 99.0), (0.0, 101.0), (1.0, 109.0), (1.0, 111.0)] * 2
    fit = fit_power([PowerSample(*value) for value in values])
    error_w = (8 / 6) ** 0.5 * (1 + 1 / 8 + 0.25 / 2) ** 0.5
    assert fit.uncertainty == pytest.approx(
        ((1.943 * error_w / 100) ** 2 + 0.03**2) ** 0.5, rel=2e-3
    )


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (_samples(40.0, 6.0)[:7], "7 samples of the wall meter are too few"),
        ([PowerSample(1.9 + i / 100, 50.0) for i in range(9)], "hardly varied: 1.9 to 2 busy"),
        (_samples(40.0, -6.0), "this cannot be"),
        (_samples(-5.0, 6.0), "this cannot be"),
        (_samples(40.0, 6.0, noise_w=20.0), "too wide for a calibration"),
    ],
    ids=["few", "flat", "falling", "negative", "wide"],
)
def test_nonsense_is_refused(samples: list[PowerSample], why: str) -> None:
    with pytest.raises(FitError, match=why):
        fit_power(samples)
