"""What receipts have to reach on the simulated machine, and how far the worst of them is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evals.tables import text

_COVERED = (0.87, 0.93)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of one figure, for meters and classes of requests; None is all of them."""

    figure: str
    low: float
    high: float
    meter: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        name = self.figure.replace("_", " ").replace("mape", "MAPE")
        where = f"{self.meter or 'any meter'}, {self.group or 'each class'}"
        low = "" if self.low == -self.high or not self.low else f"{text(self.low, '.0%')} to "
        sign = "± " if self.low == -self.high else ("" if low else "≤ ")
        return f"{name}, {where}: {sign}{low}{text(self.high, '.0%')}"

    def excess(self, found: float) -> float:
        """How far a figure is beyond the bound; negative within it."""
        return max(self.low - found, found - self.high)


TARGETS = (
    Target("active_mape", 0.0, 0.05, "100ms", "all"),
    Target("idle_bias", -0.03, 0.03, "100ms", "all"),
    Target("idle_bias", -0.10, 0.10, "100ms", "short"),
    Target("active_mape", 0.0, 0.15, "1s", "all"),
    *(Target("coverage", *_COVERED, meter) for meter in ("1ms", "100ms", "1s", "power")),
)


def judged(arms: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target with its worst figure among the arms it is for, and whether that will do."""
    rows = []
    for target in TARGETS:
        found = [
            (figures[target.figure], f"{arm}, {group}")
            for arm, row in arms.items()
            for group, figures in row["classes"].items()
            if target.meter in (None, arm.partition("/")[0])
            and target.group in (None, group)
            and target.figure in figures
        ]
        if found:
            worst, where = max(found, key=lambda pair: target.excess(pair[0]))
            is_met = target.excess(worst) <= 0
            rows.append({"target": str(target), "worst": worst, "of": where, "met": is_met})
    return rows
