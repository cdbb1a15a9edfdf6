"""Medians and ratios of what was measured round by round. Pure.

A round of an arm is a mapping of figures, the same names in all of its rounds. Ratios are taken
within a round, because machines are noisy, and the median of them is the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]
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


def column(rounds: Sequence[Figures], name: str) -> list[float]:
    """One figure of all rounds."""
    return [figures[name] for figures in rounds]


def medians(rounds: Sequence[Figures], *names: str) -> dict[str, float]:
    """The medians of these figures; of all without any."""
    return {name: statistics.median(column(rounds, name)) for name in names or rounds[0]}


def over(rounds: Sequence[Figures], base: Sequence[Figures], name: str) -> dict[str, float]:
    """The paired ratio of one figure to that of another arm."""
    return paired_ratio(column(rounds, name), column(base, name))
