"""A window is idle joules, active ones and those of other processes, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.account.window import DomainWindow, take_apart
from greenllm.energy.meters.protocol import Reading

DOMAINS = ("cpu", "dram", "gpu")
joules = st.fixed_dictionaries({domain: st.floats(0, 1e6) for domain in DOMAINS})
seconds = st.none() | st.floats(0, 1e4)


def test_idle_power_over_the_window_is_idle_and_the_rest_active() -> None:
    window = take_apart(Reading(1.0, {"cpu": 5.0}), Reading(3.0, {"cpu": 25.0}), {"cpu": 4.0})
    assert window.duration_s == 2.0
    assert (window.idle_j, window.active_j) == ({"cpu": 8.0}, {"cpu": 12.0})
    assert (window.unattributed_j, window.own_j) == (0.0, 20.0)


def test_idle_is_never_more_than_what_was_counted() -> None:
    window = take_apart(Reading(0.0, {"cpu": 0.0}), Reading(1.0, {"cpu": 3.0}), {"cpu": 50.0})
    assert (window.idle_j, window.active_j) == ({"cpu": 3.0}, {"cpu": 0.0})


def test_unknown_idle_power_makes_everything_active() -> None:
    window = take_apart(Reading(0.0, {"cpu": 0.0}), Reading(1.0, {"cpu": 3.0}), {})
    assert window.active_j == {"cpu": 3.0}


def test_others_cpu_time_is_their_part_of_the_active_joules_but_not_of_the_gpu() -> None:
    before = Reading(0.0, dict.fromkeys(DOMAINS, 0.0), 10.0, 10.0)
    now = Reading(1.0, dict.fromkeys(DOMAINS, 10.0), 11.0, 14.0)
    window = take_apart(before, now, {"cpu": 2.0})
    assert window.active_j == pytest.approx({"cpu": 2.0, "dram": 2.5, "gpu": 10.0})
    assert window.idle_j == pytest.approx({"cpu": 2.0, "dram": 0.0, "gpu": 0.0})
    assert window.unattributed_j == pytest.approx(6.0 + 7.5)


@pytest.mark.parametrize(
    ("own", "machine"),
    [((1.0, 2.0), (None, 5.0)), ((None, None), (None, None)), ((1.0, 1.0), (4.0, 4.0))],
)
def test_nothing_is_unattributed_where_it_cannot_be_told(
    own: tuple[float | None, float | None], machine: tuple[float | None, float | None]
) -> None:
    before = Reading(0.0, {"cpu": 0.0}, own[0], machine[0])
    now = Reading(1.0, {"cpu": 8.0}, own[1], machine[1])
    assert take_apart(before, now, {}).unattributed_j == 0


def test_a_domain_that_falls_or_a_clock_that_stands_adds_nothing() -> None:
    window = take_apart(Reading(2.0, {"cpu": 9.0}), Reading(1.0, {"cpu": 3.0}), {"cpu": 1.0})
    assert (window.duration_s, window.own_j, window.unattributed_j) == (0.0, 0.0, 0.0)


@settings(max_examples=50)
@given(joules, joules, joules, st.floats(0, 1e3), st.tuples(seconds, seconds, seconds, seconds))
def test_the_parts_are_not_negative_and_add_up(
    start: dict[str, float],
    added: dict[str, float],
    idle_w: dict[str, float],
    duration_s: float,
    cpu_s: tuple[float | None, float | None, float | None, float | None],
) -> None:
    before = Reading(5.0, start, cpu_s[0], cpu_s[1])
    later = {domain: start[domain] + added[domain] for domain in DOMAINS}
    now = Reading(5.0 + duration_s, later, cpu_s[2], cpu_s[3])
    window = take_apart(before, now, idle_w)
    delta_j = now.total_j - before.total_j
    assert window.own_j + window.unattributed_j == pytest.approx(delta_j, rel=1e-9, abs=1e-6)
    parts = [*window.idle_j.values(), *window.active_j.values(), window.unattributed_j]
    assert min(parts) >= 0


def test_training_is_told_apart_from_others() -> None:
    before = Reading(0.0, dict.fromkeys(DOMAINS, 0.0), 10.0, 10.0, 5.0)
    now = Reading(1.0, dict.fromkeys(DOMAINS, 10.0), 11.0, 14.0, 7.0)
    window = take_apart(before, now, {"cpu": 2.0})
    assert window.active_j == pytest.approx({"cpu": 2.0, "dram": 2.5, "gpu": 10.0})
    assert window.train_j == pytest.approx((8.0 + 10.0) * 2 / 4)
    assert window.unattributed_j == pytest.approx((8.0 + 10.0) * 1 / 4)


def test_a_part_of_the_floor_is_idle_where_several_servers_share_it() -> None:
    before = Reading(1.0, dict.fromkeys(DOMAINS, 0.0), floor_s=7.0)
    now = Reading(5.0, dict.fromkeys(DOMAINS, 100.0), floor_s=8.5)
    window = take_apart(before, now, dict.fromkeys(DOMAINS, 4.0))
    assert window.duration_s == 4.0
    assert window.idle_j == {"cpu": 6.0, "dram": 6.0, "gpu": 16.0}, "a GPU is not shared"
    assert window.own_j == pytest.approx(300.0)


@pytest.mark.parametrize("floors", [(None, 3.0), (3.0, None), (None, None)])
def test_where_no_floor_is_told_all_of_it_is_this_servers(
    floors: tuple[float | None, float | None],
) -> None:
    before, now = (
        Reading(at_s, {"cpu": 100.0 * at_s}, floor_s=floor_s)
        for at_s, floor_s in zip((0.0, 2.0), floors, strict=True)
    )
    assert take_apart(before, now, {"cpu": 4.0}).idle_j == {"cpu": 8.0}


def test_a_floor_that_falls_is_nobodys() -> None:
    before, now = Reading(0.0, {"cpu": 0.0}, floor_s=5.0), Reading(1.0, {"cpu": 9.0}, floor_s=4.0)
    assert take_apart(before, now, {"cpu": 4.0}).idle_j == {"cpu": 0.0}


def test_idle_energy_while_requests_ran_is_a_part_of_the_windows() -> None:
    window = DomainWindow(1.0, 3.0, 8.0, 5.0, 2.0, 1.0)
    assert (window.duration_s, window.energy_j) == (2.0, 16.0)
    assert [window.idle_while_busy_j(seconds) for seconds in (0.0, 0.5, 9.0)] == [0.0, 2.0, 8.0]


def test_a_domain_that_only_one_reading_has_is_left_out() -> None:
    before, now = Reading(0.0, {"cpu": 1.0, "gpu": 5.0}), Reading(1.0, {"cpu": 3.0, "dram": 9.0})
    assert take_apart(before, now, {}).active_j == {"cpu": 2.0}
