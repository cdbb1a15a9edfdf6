"""Dies that show their whole socket count once; counters of their own are all kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.meters.mirrors import independent

RANGE_UJ = 65_532_610_987
J = 1_000_000


def test_dies_that_mirror_each_other_count_once() -> None:
    """Two sockets of four dies, read one after the other at 200 W."""
    starts = (7_000 * J, 41_000 * J)
    samples = [
        [start + second * 200 * J + die * 20_000 for start in starts for die in range(4)]
        for second in range(3)
    ]
    assert independent(samples, [RANGE_UJ] * 8) == [0, 4]


def test_sockets_under_the_same_load_are_all_kept() -> None:
    samples = [[start + second * 150 * J for start in (0, 90 * J)] for second in range(4)]
    assert independent(samples, [RANGE_UJ] * 2) == [0, 1]


def test_counters_that_meet_once_are_kept() -> None:
    samples = [[100 * J, 100 * J], [200 * J, 300 * J]]
    assert independent(samples, [RANGE_UJ] * 2) == [0, 1]


def test_mirrors_that_wrap_between_two_reads_are_mirrors() -> None:
    samples = [
        [RANGE_UJ - 100 * J, RANGE_UJ - 100 * J + 1],
        [RANGE_UJ - 10_000, 10_000],
        [100 * J, 100 * J + 20_000],
    ]
    assert independent(samples, [RANGE_UJ] * 2) == [0]


def test_counters_that_stand_still_tell_nothing() -> None:
    assert independent([[0, 0], [0, 0], [1, 1]], [RANGE_UJ] * 2) == [0, 1]
    assert independent([[5, 5]], [RANGE_UJ] * 2) == [0, 1], "one sample has not moved"
    assert independent([], [None, None]) == [0, 1]


def test_another_range_is_another_counter() -> None:
    samples = [[0, 0], [100 * J, 100 * J]]
    assert independent(samples, [RANGE_UJ, None]) == [0, 1]
    assert independent(samples, [None, None]) == [0]


@given(st.lists(st.lists(st.integers(0, RANGE_UJ - 1), min_size=3, max_size=3), max_size=5))
def test_what_is_dropped_has_its_equal_among_the_kept(samples: list[list[int]]) -> None:
    kept = independent(samples, [RANGE_UJ] * 3)
    assert kept[0] == 0
    doubled = [[*sample, *sample] for sample in samples]
    assert independent(doubled, [RANGE_UJ] * 6)[: len(kept)] == kept
