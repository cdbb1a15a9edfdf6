"""Shapley values of a step's cost: what each request adds, averaged over all orders of joining.

Contract: pure. The worth of no request is 0, and the values add up to the worth of all. `exact`
takes the worth of every subset, `sampled` a function of what the requests of a subset do together.

Not covered: games in which it matters who does the work, beyond how much of each kind it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import factorial

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Up to here it is also cheaper to enumerate than to draw orders.
MOST_EXACT = 12
ORDERS = 400


@lru_cache
def members(num_players: int) -> Floats:
    """Subsets by number: 1 in row `s` and column `i` where bit `i` of `s` is set."""
    numbers = np.arange(2**num_players)[:, None]
    return ((numbers >> np.arange(num_players)) & 1).astype(np.float64)


@lru_cache
def _weights(num_players: int) -> Floats:
    """How the worth of each subset (column) enters the value of each player (row)."""
    inside = members(num_players).T
    sizes = inside.sum(axis=0)
    orders = np.array([factorial(n) for n in range(num_players + 1)], np.float64)
    last = sizes.astype(int)
    joined = orders[last - 1] * orders[num_players - last] / orders[num_players]
    left = orders[last] * orders[num_players - last - 1] / orders[num_players]
    weights: Floats = np.where(inside > 0, joined, -left)
    return weights


def exact(worth: Floats) -> Floats:
    """The values, from the worth of each subset in the order of `members`.

    Raises:
        ValueError: their number is no power of two.
    """
    num_players = len(worth).bit_length() - 1
    if len(worth) != 2**num_players:
        raise ValueError(f"there are no {len(worth)} subsets")
    values: Floats = _weights(num_players) @ worth
    return values


def sampled(
    worth: Callable[[Floats], Floats],
    work: Floats,
    source: np.random.Generator,
    orders: int = ORDERS,
) -> Floats:
    """Estimates from random orders, each taken forwards and backwards.

    Args:
        worth: of sums of rows of `work`, for any number of leading axes.
        work: a row for each player.
        source: of the orders.
        orders: how many.
    """
    num_players = len(work)
    found = source.permuted(np.tile(np.arange(num_players), (orders // 2, 1)), axis=1)
    found = np.concatenate([found, found[:, ::-1]])
    values = worth(work[found].cumsum(axis=1))
    added = np.diff(values, axis=1, prepend=0.0)
    sums = np.bincount(found.ravel(), weights=added.ravel(), minlength=num_players)
    return np.asarray(sums / len(found), np.float64)


def values_of(
    worth: Callable[[Floats], Floats], work: Floats, source: np.random.Generator
) -> Floats:
    """Exact values of a few players, estimates of many."""
    if len(work) <= MOST_EXACT:
        return exact(worth(members(len(work)) @ work))
    return sampled(worth, work, source)


def misplaced(shares: Floats, truth: Floats) -> float:
    """The part of the whole that is on the wrong player: the total variation distance."""
    return float(np.abs(shares / shares.sum() - truth / truth.sum()).sum() / 2)
