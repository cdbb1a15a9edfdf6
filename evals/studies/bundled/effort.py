"""What a run has used so far and how its losses went, kept across pauses and restarts.

Contract: progress counts tokens, so a paused process loses nothing. Of a lap with a pause in it
only the processor time counts as wall time. Energy is modelled from processor time and said to
be so. Not covered: measured energy, and trials before a run.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

DYNAMIC_W: Final = 1.50
IDLE_W: Final = 0.46
VIRTUAL_CPUS: Final = 2
PAUSE_S: Final = 90.0


@dataclass(frozen=True)
class Effort:
    """Steps, tokens and seconds, with a smoothed loss."""

    steps: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    loss: float = float("nan")

    def after(self, loss: float, tokens: int, wall_s: float, cpu_s: float) -> Effort:
        """The effort after one more step that took these seconds."""
        share = max(0.01, 1 / (self.steps + 1))
        smooth = loss if self.steps == 0 else (1 - share) * self.loss + share * loss
        return Effort(
            self.steps + 1, self.tokens + tokens, self.wall_s + wall_s, self.cpu_s + cpu_s, smooth
        )

    def plus(self, wall_s: float, cpu_s: float) -> Effort:
        """The same steps with seconds that no step took, such as compiling or checking."""
        return replace(self, wall_s=self.wall_s + wall_s, cpu_s=self.cpu_s + cpu_s)


class Clock:
    """Wall and processor seconds since the last look."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, as wall and processor time."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        wall, cpu = wall_s - self._wall_s, cpu_s - self._cpu_s
        self._wall_s, self._cpu_s = wall_s, cpu_s
        return (cpu if wall > PAUSE_S else wall), cpu


def modelled_j(effort: Effort) -> float:
    """Joules from processor seconds and idle wall time, per AMD EPYC gen-3 vCPU figures."""
    return effort.cpu_s * DYNAMIC_W + effort.wall_s * VIRTUAL_CPUS * IDLE_W


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """One more row of a curve, with a header if it is the first."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a curve."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def keep_rows(path: Path, steps: int) -> None:
    """Drop rows later than a step, which a resumed run writes again."""
    rows: Sequence[dict[str, float]] = read_rows(path) if path.exists() else []
    path.unlink(missing_ok=True)
    for row in rows:
        if row["step"] <= steps:
            append_row(path, row)
