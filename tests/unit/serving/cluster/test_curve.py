"""When a replica is full, by what its tokens have cost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster.curve import JoulesCurve


def curve_of(joules: Mapping[int, float], most: int = 64) -> JoulesCurve:
    """A curve that has seen so many joules per token at each size."""
    curve = JoulesCurve(most)
    for size, per_token_j in joules.items():
        curve.note((size, size), 100, 100 * per_token_j)
    return curve


@pytest.mark.parametrize(
    ("joules", "full_at"),
    [
        ({}, 64),
        ({1: 1.0}, 64),
        ({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}, 64),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.48}, 3),
        ({1: 1.0, 2: 0.5, 4: 0.47}, 64),
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.3, 8: 0.6}, 7),
        ({1: 1.0, 2: 1.0, 4: 0.5, 8: 0.5}, 7),
        ({4: 1.0, 8: 1.0}, 7),
        ({2: 1.0, 8: 1.0}, 3),
    ],
)
def test_a_replica_is_full_where_larger_batches_save_little(
    joules: dict[int, float], full_at: int
) -> None:
    assert curve_of(joules).full_at == full_at


def test_what_fills_a_replica_is_never_more_than_it_takes() -> None:
    assert curve_of({4: 1.0, 8: 1.0}, most=6).full_at == 6
    assert curve_of({}, most=1).full_at == 1


@pytest.mark.parametrize(
    ("in_flight", "size"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (1000, 512)]
)
def test_sizes_are_powers_of_two(in_flight: int, size: int) -> None:
    curve = JoulesCurve(64)
    curve.note((in_flight, in_flight), 100, 50.0)
    assert curve.per_token_j == {size: 0.5}


@pytest.mark.parametrize(
    ("in_flight", "tokens", "joules"),
    [((1, 1), 15, 1.0), ((0, 0), 100, 1.0), ((1, 2), 100, 1.0), ((1, 1), 100, 0.0)],
)
def test_what_tells_nothing_is_not_noted(
    in_flight: tuple[int, int], tokens: int, joules: float
) -> None:
    curve = JoulesCurve(64)
    curve.note(in_flight, tokens, joules)
    assert curve.per_token_j == {}
    curve.note((1, 1), 16, 1.0)
    assert curve.per_token_j == {1: 1 / 16}


def test_the_first_figure_counts_at_once_and_later_ones_slowly() -> None:
    curve = curve_of({1: 1.0})
    curve.note((1, 1), 100, 200.0)
    assert curve.per_token_j[1] == pytest.approx(1.3)
    for _ in range(40):
        curve.note((1, 1), 100, 200.0)
    assert curve.per_token_j[1] == pytest.approx(2.0, rel=1e-3)


def test_what_has_not_been_seen_for_long_is_tried_again() -> None:
    curve = curve_of({1: 1.0, 2: 0.52, 4: 0.6})
    assert curve.full_at == 3
    for _ in range(299):
        curve.note((2, 3), 100, 52.0)
    assert curve.full_at == 3
    for _ in range(2):
        curve.note((2, 3), 100, 52.0)
    assert curve.full_at == 64
    assert set(curve.per_token_j) == {2}


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1e-6, 1e6)),
    st.integers(1, 64),
)
def test_what_fills_a_replica_is_within_bounds(joules: dict[int, float], most: int) -> None:
    assert 1 <= curve_of(joules, most).full_at <= most
