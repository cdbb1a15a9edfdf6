"""Shapley values: known games, and the axioms."""

from __future__ import annotations

import numpy as np
import pytest

from evals.studies.truth.shapley import Floats, exact, members, misplaced, sampled, values_of


def source() -> np.random.Generator:
    return np.random.default_rng(1)


def gloves(work: Floats) -> Floats:
    """Pairs of a left and a right glove."""
    return np.minimum(work[..., 0], work[..., 1])


LEFT_AND_TWO_RIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])


def test_a_left_glove_is_worth_four_times_one_of_two_right_ones() -> None:
    values = values_of(gloves, LEFT_AND_TWO_RIGHT, source())
    assert values == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_subsets_are_in_the_order_of_their_bits() -> None:
    assert members(2).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert exact(np.array([0.0, 1.0, 3.0, 6.0])).tolist() == [2.0, 4.0]


def test_a_number_of_subsets_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no 3 subsets"):
        exact(np.zeros(3))


def test_fixed_costs_are_shared_and_own_costs_are_ones_own() -> None:
    own = np.array([0.0, 2.0, 7.0, 1.0])
    worth = members(4) @ own + 12.0 * (members(4).sum(axis=1) > 0)
    assert exact(worth) == pytest.approx(own + 3.0)


def test_random_orders_come_near_and_add_up() -> None:
    work = np.arange(1.0, 9.0)[:, None]

    def root(total: Floats) -> Floats:
        return np.asarray(total[..., 0] ** 0.5)

    truth, found = exact(root(members(8) @ work)), sampled(root, work, source(), orders=2000)
    assert found.sum() == pytest.approx(root(work.sum(axis=0)))
    assert found == pytest.approx(truth, rel=0.1)
    assert (np.diff(found) > 0).all()


def test_what_is_misplaced_is_between_nothing_and_all() -> None:
    assert misplaced(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == 1.0
    assert misplaced(np.array([1.0, 1.0]), np.array([3.0, 3.0])) == 0.0
    assert misplaced(np.array([3.0, 1.0]), np.array([1.0, 1.0])) == 0.25
