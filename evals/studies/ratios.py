"""Ratios of what was measured round by round, and what stands beside their median. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# Quartiles of fewer would lie beyond what was measured.
_FEW = 3


def spread_of(rounds: int) -> str:
    """What stands beside a median of so many rounds."""
    return "range" if rounds <= _FEW else "quartiles"


def paired_ratio(top: Sequence[float], bottom: Sequence[float]) -> dict[str, float]:
    """Median of round-by-round ratios, with their quartiles; of up to three, least and largest."""
    ratios = sorted(a / b for a, b in zip(top, bottom, strict=True))
    if len(ratios) <= _FEW:
        return {"median": statistics.median(ratios), "q1": ratios[0], "q3": ratios[-1]}
    quartiles = statistics.quantiles(ratios, n=4)
    return {"median": statistics.median(ratios), "q1": quartiles[0], "q3": quartiles[2]}
