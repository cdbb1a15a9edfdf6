"""Counters that show the same energy twice.

On some AMD processors each die of a socket has a package counter, and all of them count the whole
socket: their sum is the socket's energy as often as it has dies. They are told by their values:
read at the same moment, they are the same number.

Contract: `independent` is a pure function of values that were read together, several times, while
the machine worked. It never drops a counter that may be one of its own: two that agree only in how
fast they move are kept, and so are all where too little has moved to tell.

Not covered: mirrors whose values differ by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

NOISE_UJ = 500_000
_MOVED_BY_NOISES = 10


def independent(
    samples: Sequence[Sequence[int]], ranges_uj: Sequence[int | None], noise_uj: int = NOISE_UJ
) -> list[int]:
    """Places of the counters that mirror none before them.

    Args:
        samples: Values of all counters, read one after the other, at several moments. [uJ]
        ranges_uj: Where each counter wraps; None where it does not say. [uJ]
        noise_uj: What may be counted between reading two counters of a sample.
    """
    kept: list[int] = []
    for place, range_uj in enumerate(ranges_uj):
        values = [sample[place] for sample in samples]
        has_moved = _moved_uj(values, range_uj) >= _MOVED_BY_NOISES * noise_uj
        is_mirror = has_moved and any(
            ranges_uj[other] == range_uj
            and all(
                _apart_uj(sample[other], sample[place], range_uj) <= noise_uj for sample in samples
            )
            for other in kept
        )
        kept += [] if is_mirror else [place]
    return kept


def _moved_uj(values: Sequence[int], range_uj: int | None) -> int:
    """How far a counter went, step by step."""
    steps = pairwise(values)
    return sum(_apart_uj(before, after, range_uj) for before, after in steps)


def _apart_uj(one: int, other: int, range_uj: int | None) -> int:
    """The distance of two values, the shorter way round where the counter wraps."""
    apart = abs(one - other)
    return apart if not range_uj else min(apart, abs(range_uj - apart))
