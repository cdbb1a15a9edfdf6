"""How fast a figure grows: the median of the slopes between all pairs of samples (Theil-Sen).

Contract: a few samples that lie far off do not move it. The interval is Sen's, by Kendall's rank
statistic: for samples that do not depend on each other it holds the slope 95 times in 100. Memory
moves in steps that last, so there it is narrower than it should be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.96
_MOST_SAMPLES = 600  # all pairs of them take some megabytes


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per unit of time, with the ends of its interval."""

    value: float
    low: float
    high: float


def theil_sen(times: Sequence[float], figures: Sequence[float]) -> Slope | None:
    """The slope of samples in the order of their times; None for fewer than three."""
    stride = max(1, math.ceil(len(times) / _MOST_SAMPLES))
    at, found = np.asarray(times[::stride]), np.asarray(figures[::stride], dtype=np.float64)
    if len(at) < 3:
        return None
    first, second = np.triu_indices(len(at), k=1)
    slopes = np.sort((found[second] - found[first]) / (at[second] - at[first]))
    low = _first_place(len(at), len(slopes))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[-1 - low]))


def _first_place(num_samples: int, num_slopes: int) -> int:
    """Where the low end of the interval is among the sorted slopes; the high one as far back."""
    n = num_samples
    width = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return max(0, math.floor((num_slopes - width) / 2))


def second_half(times: Sequence[float]) -> slice:
    """The samples of the second half of the time, when what fills at first is full."""
    middle = (times[0] + times[-1]) / 2
    return slice(next(place for place, at in enumerate(times) if at >= middle), None)
