"""What receipts have to reach on the simulated machine, and how far the worst of them is. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evals.tables import text

_COVERED = (0.87, 0.93)
# A share of fewer requests is known too badly to be judged.
_ENOUGH = 100


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of one figure, for a meter and a class of requests; None is each class."""

    figure: str
    low: float
    high: float
    meter: str
    group: str | None = None

    def __str__(self) -> str:
        name = self.figure.replace("_", " ").replace("mape", "MAPE")
        where = f"{self.meter}, {self.group or 'each class'}"
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


def judged(arms: Mapping[str, Any], meters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target with its worst figure and whether that will do.

    Coverage is judged by meter, over all laws, for classes that have enough requests; everything
    else in each arm.
    """
    rows = []
    for target in TARGETS:
        classes = meters if target.figure == "coverage" else _classes(arms)
        found = list(_figures(target, classes))
        if found:
            worst, where = max(found, key=lambda pair: target.excess(pair[0]))
            is_met = target.excess(worst) <= 0
            rows.append({"target": str(target), "worst": worst, "of": where, "met": is_met})
    return rows


def _classes(arms: Mapping[str, Any]) -> dict[str, Any]:
    return {arm: row["classes"] for arm, row in arms.items()}


def _figures(target: Target, classes_of: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """What a target is for, and where it is from."""
    for name, classes in classes_of.items():
        for group, figures in classes.items():
            is_meant = target.meter == name.partition("/")[0] and target.group in (None, group)
            is_few = target.group is None and figures["requests"] < _ENOUGH
            if is_meant and not is_few and target.figure in figures:
                yield figures[target.figure], f"{name}, {group}"
