"""What `evals.calibrate` decides: thresholds from positions, and how they are written down.

Contract: pure. A threshold is the smallest at which the agreement is at least what was asked for,
with a margin: by the lower end of the 95 % Wilson interval. Tokens of one answer are not
independent, which the interval does not know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evals.tables import grid
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS

AGREEMENTS = (0.90, 0.95, 0.98, 0.99)
# Below it an exit is sure of everything.
LEAST = 0.01
_Z = 1.96
_STEPS = 1e6


class Position(NamedTuple):
    """A token of an answer: how sure the exit was of its own, and whether it was the model's."""

    confidence: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    part: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; 1 where there is nothing."""
        return self.part / self.total if self.total else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of many more would be, with 95 % (Wilson, 1927)."""
        if not self.total:
            return 0.0, 1.0
        n, z2 = self.total, _Z * _Z
        middle = (self.value + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * math.sqrt(self.value * (1 - self.value) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def summary(self) -> dict[str, Any]:
        """For a result's file."""
        return {"share": self.value, "interval_95": list(self.interval), "of": self.total}


def agreement_at(positions: Sequence[Position], threshold: float) -> Share:
    """Tokens that stay the model's if the exit gives those that it is surer of."""
    lost = sum(spot.confidence > threshold and not spot.agrees for spot in positions)
    return Share(len(positions) - lost, len(positions))


def choose(positions: Sequence[Position], agreement: float) -> float | None:
    """The smallest threshold that is sure enough; None where none is, or too little was seen."""
    wrong = sorted((spot.confidence for spot in positions if not spot.agrees), reverse=True)
    total, lost = len(positions), 0
    while lost <= len(wrong) and Share(total - lost, total).interval[0] >= agreement:
        lost += 1
    if not lost:
        return None
    # One fewer may be lost: the surest of those that may not are not to leave.
    least = wrong[lost - 1] if lost <= len(wrong) else LEAST
    threshold = max(LEAST, least, math.ceil(least * _STEPS) / _STEPS)
    return threshold if threshold < 1 else None


def with_thresholds(
    text: str, layer: int, thresholds: Mapping[float, float], *, keep_higher: bool = False
) -> str:
    """A config.json with an exit's thresholds, and all else as it was.

    Those of another kind of text may be kept where they are higher, so that both hold.
    """
    config: dict[str, Any] = json.loads(text)
    tables = config.get(EXIT_THRESHOLDS, {})
    old = tables.get(str(layer), {}) if keep_higher else {}
    table = {str(s): max(thresholds[s], old.get(str(s), 0.0)) for s in sorted(thresholds)}
    config[EXIT_THRESHOLDS] = {**tables, str(layer): {**old, **table}}
    found = re.match(r"\s*\{\n([ \t]+)", text)
    end = text[len(text.rstrip()) :]
    indent = found[1] if found else None
    return json.dumps(config, indent=indent, ensure_ascii=text.isascii()) + end


_COLUMNS = (
    *("asked", "threshold", "calibrated", "measured", "from", "to"),
    *("mean layers", "same answers", "right"),
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table; a row without a threshold that is not plain could not be had."""
    return grid(_COLUMNS, list(map(_cells, rows))) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    asked = "plain" if row["asked"] is None else f"{row['asked']:g}"
    if "measured" not in row:
        return [asked, "none", *[""] * (len(_COLUMNS) - 2)]
    calibrated, measured, right = row["calibrated"], row["measured"], row["right"]
    return [
        asked,
        "" if row["threshold"] is None else f"{row['threshold']:.4f}",
        "" if calibrated is None else f"{calibrated['share']:.2%}",
        f"{measured['share']:.2%}",
        *(f"{end:.2%}" for end in measured["interval_95"]),
        f"{row['mean_layers']:.2f}",
        f"{row['same_answers']['share']:.1%}",
        f"{right['share']:.1%}" if right["of"] else "",
    ]
