"""Shares add up, follow their weights and lose nothing."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.account.attribution import Work, split, total_work

weight = st.floats(0, 1e12)
seeds = st.integers(0, 2**32)


@given(weight, st.lists(weight, min_size=1, max_size=64))
def test_shares_add_up_and_are_never_negative(total: float, weights: list[float]) -> None:
    shares = split(total, weights)
    assert len(shares) == len(weights)
    assert abs(sum(shares) - total) <= 4 * math.ulp(total)
    assert min(shares) >= 0


@given(weight, st.lists(weight, min_size=1, max_size=16), seeds)
def test_shares_follow_their_weights_in_any_order(
    total: float, weights: list[float], seed: int
) -> None:
    order = list(range(len(weights)))
    random.Random(seed).shuffle(order)
    shares = split(total, weights)
    assert split(total, [weights[i] for i in order]) == pytest.approx(
        [shares[i] for i in order], rel=1e-9, abs=1e-300
    )


def test_the_rounding_is_not_lost() -> None:
    shares = split(1.0, [1.0] * 10)
    assert sum([0.1] * 10) != 1.0, "ten plain tenths fall short"
    assert sum(shares) == 1.0


def test_nobody_shares_nothing_and_zero_weights_share_equally() -> None:
    assert split(5.0, []) == []
    assert split(6.0, [0.0, 0.0, 0.0]) == [2.0, 2.0, 2.0]


def test_work_adds_every_part() -> None:
    assert total_work([Work(1, 2, 3, 4), Work(10, 20, 30, 40)]) == Work(11, 22, 33, 44)
    assert total_work([]) == Work()
    assert Work(10, 20, 30, 40).scaled(0.5) == Work(5, 10, 15, 20)
