"""One counter is followed truly, whatever it says now and then."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.meters.track import CounterTrack

LARGEST_W, PERIOD_S, RANGE_J, START_J = 300.0, 0.1, 262_144.0, 200_000.0
NONSENSE_J = (0.0, 200.0, 100_000.0, 1e9, float(2**63))
looks = st.lists(
    st.tuples(st.floats(0.01, 3.0), st.floats(0, 1), st.sampled_from((None, *NONSENSE_J))),
    max_size=40,
)


def _track(raw_j: float, wraps_at_j: float | None = None) -> CounterTrack:
    return CounterTrack(raw_j, 0.0, largest_w=LARGEST_W, period_s=PERIOD_S, wraps_at_j=wraps_at_j)


@settings(max_examples=200)
@given(looks, st.sampled_from([None, RANGE_J]))
def test_single_readings_of_nonsense_never_count(
    looks: list[tuple[float, float, float | None]], wraps_at_j: float | None
) -> None:
    """Each is followed by a true one, and then everything is as if it had not been."""
    track, now_s, true_j, num_nonsense = _track(START_J, wraps_at_j), 0.0, 0.0, 0
    for seconds, load, nonsense_j in looks:
        if nonsense_j is not None:
            num_nonsense += 1
            before_j = track.sum_j
            assert not track.see(nonsense_j, now_s + seconds / 2)
            assert (track.sum_j, track.is_at_fault) == (before_j, True)
        now_s += seconds
        true_j += load * LARGEST_W * seconds
        assert not track.see(START_J + true_j, now_s)
        assert track.sum_j == pytest.approx(true_j, abs=1e-6)
    assert track.num_faults == num_nonsense
    assert not track.is_at_fault


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(-1e3, 1e12)), max_size=40))
def test_whatever_it_says_the_sum_rises_and_is_no_more_than_can_be_drawn(
    looks: list[tuple[float, float]],
) -> None:
    track, now_s, before_j = _track(START_J, RANGE_J), 0.0, 0.0
    for seconds, raw_j in looks:
        now_s += seconds
        track.see(raw_j, now_s)
        assert track.sum_j >= before_j
        before_j = track.sum_j
    assert track.sum_j <= 2 * LARGEST_W * (now_s + 2 * PERIOD_S * len(looks))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0, 1)), max_size=60), st.floats(0, 2000))
def test_wraps_are_followed_to_the_joule(looks: list[tuple[float, float]], start_j: float) -> None:
    range_j = 2000.0
    track, now_s, true_j = _track(start_j % range_j, range_j), 0.0, 0.0
    for seconds, load in [*looks, (0.1, 0.0), (0.1, 0.0)]:
        now_s += seconds
        true_j += load * LARGEST_W * seconds
        assert not track.see((start_j + true_j) % range_j, now_s)
        assert track.sum_j <= true_j + 1e-6
    assert track.sum_j == pytest.approx(true_j, abs=1e-6)
    assert track.num_faults == 0


@pytest.mark.parametrize("repeats", [1, 2, 10])
def test_a_counter_that_slips_back_counts_no_joule_twice(repeats: int) -> None:
    """Two joules on, one back, a thousand times; each is read once or several times."""
    track, raw_j, now_s = _track(START_J), START_J, 0.0
    for _ in range(1000):
        for step_j in (2.0, -1.0):
            raw_j += step_j
            for _ in range(repeats):
                now_s += 0.05
                assert not track.see(raw_j, now_s)
    assert track.sum_j == pytest.approx(1001.0)
    assert track.num_faults == 0


def test_a_young_counter_that_begins_again_has_not_slipped() -> None:
    """It had counted less than a slip may be; its new joules are not held back for that."""
    track = _track(0.0)
    track.see(50.0, 1.0)
    track.see(1.0, 2.0)
    assert track.see(2.0, 2.2), "what it counted before it began again is missing"
    track.see(5.0, 2.4)
    assert (track.sum_j, track.num_faults) == (55.0, 1)


def test_a_fall_is_believed_a_period_later_and_not_before() -> None:
    track = _track(START_J)
    for now_s, raw_j in ((1.0, 0.0), (1.05, 5.0)):
        assert not track.see(raw_j, now_s)
        assert track.sum_j == 0
    assert track.see(10.0, 1.1), "joules are missing"
    assert track.sum_j == 10.0
    assert not track.see(20.0, 1.2)
    assert track.sum_j == 20.0


def test_a_counter_that_jumps_and_stays_is_followed_from_there() -> None:
    track = _track(START_J)
    assert not track.see(START_J + 1e6, 1.0)
    assert track.see(START_J + 1e6 + 30.0, 1.2)
    assert track.sum_j == 30.0
    assert (track.num_faults, track.is_at_fault) == (1, False)


def test_a_counter_that_falls_far_and_goes_on_there_is_followed_from_there() -> None:
    track = _track(START_J)
    track.see(100_000.0, 1.0)
    assert track.see(100_030.0, 1.2)
    assert track.sum_j == 30.0


def test_a_wrap_is_no_fault_and_nothing_is_missing() -> None:
    track = _track(RANGE_J - 10.0, RANGE_J)
    assert not track.see(20.0, 1.0)
    assert not track.see(50.0, 1.2)
    assert (track.sum_j, track.num_faults) == (60.0, 0)


def test_a_tick_is_between_two_looks_and_at_most_a_period_ago() -> None:
    track = _track(START_J)
    track.see(START_J, 0.98)
    track.see(START_J + 1.0, 1.0)
    assert track.as_of_s == pytest.approx(0.99)
    track.see(START_J + 2.0, 3.0)
    assert track.as_of_s == pytest.approx(2.95)
    track.see(START_J + 2.0, 3.01)
    assert track.as_of_s == pytest.approx(2.95)
    assert track.moved_s == 3.0
