"""Figures with their 95 % intervals: ratios by bootstrap, shares by Wilson.

Not covered: intervals for joules themselves, which are the meter's to give.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 1000
_LEVEL = 0.95
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval, of so many examples."""

    value: float
    low: float
    high: float
    size: int

    def as_dict(self) -> dict[str, float | None]:
        """For reports; what has no bound is None."""
        bounds = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        low, high = bounds
        return {"value": self.value, "low": low, "high": high, "examples": self.size}


def bootstrap(sums: Sequence[float], weights: Sequence[float], seed: int = 0) -> Interval | None:
    """A ratio of sums, resampled by example (percentile bootstrap); None where it has none.

    A resample without any weight counts as infinite.
    """
    size = len(sums)
    if not size or not sum(weights):
        return None
    rng = random.Random(seed)
    found: list[float] = []
    for _ in range(_RESAMPLES):
        chosen = rng.choices(range(size), k=size)
        weight = sum(weights[i] for i in chosen)
        found.append(sum(sums[i] for i in chosen) / weight if weight else math.inf)
    found.sort()
    low, high = (round(q * (_RESAMPLES - 1)) for q in ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Interval(sum(sums) / sum(weights), found[low], found[high], size)


def wilson(hits: int, size: int) -> Interval | None:
    """A share with Wilson's interval."""
    if not size:
        return None
    share = hits / size
    centre = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * math.sqrt(share * (1 - share) / size + (_Z / size / 2) ** 2)
    # Rounding must not put the ends beyond what was seen: of none right, zero is the low end.
    return Interval(share, max(0.0, min(share, centre - half)), max(share, centre + half), size)
