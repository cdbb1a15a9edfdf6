"""What a profile has found: rows of counts, seconds and joules that add up to the step.

Contract: the rows are every part and the rest, which is in no part; their seconds sum to the step
with stopwatches, their joules to the step's active ones. Joules are shared out by time. What is
unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.profiling.config import ProfileConfig
from evals.profiling.counts import Counts, Kind
from evals.profiling.energy import StepEnergy


@dataclass(frozen=True, slots=True)
class Row:
    """One part, or the sum of `count` like it; `layer` is None outside of layers and for sums."""

    kind: Kind
    layer: int | None
    counts: Counts
    time_s: float
    active_j: float | None
    count: int = 1

    def plus(self, other: Row) -> Row:
        """Both together, without a layer."""
        joules = (
            None
            if self.active_j is None or other.active_j is None
            else self.active_j + other.active_j
        )
        counts = self.counts + other.counts
        time_s, count = self.time_s + other.time_s, self.count + other.count
        return Row(self.kind, None, counts, time_s, joules, count)


@dataclass(frozen=True, slots=True)
class Subject:
    """What ran: the model as it sits in memory, and on what."""

    name: str
    parameters: int
    quantization: str
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that was found."""

    subject: Subject
    config: ProfileConfig
    rows: tuple[Row, ...]
    plain_step_s: float
    energy: StepEnergy
    counter_flops: int | None

    @property
    def total(self) -> Row:
        """All rows together."""
        first, *others = self.rows
        for row in others:
            first = first.plus(row)
        return first

    @property
    def counter_ratio(self) -> float | None:
        """Own FLOPs over those of PyTorch's counter; None where it has none."""
        return self.total.counts.flops / self.counter_flops if self.counter_flops else None

    @property
    def overhead(self) -> float:
        """Share that stopwatches add to the step."""
        return self.total.time_s / self.plain_step_s - 1


def rows_of(
    parts: Sequence[tuple[Kind, int | None]],
    counts: Sequence[Counts],
    parts_s: Sequence[float],
    rest_s: float,
    active_j: float | None,
) -> tuple[Row, ...]:
    """A row for each part, and one for the rest."""
    places: list[tuple[Kind, int | None]] = [*parts, ("rest", None)]
    seconds = [*parts_s, rest_s]
    joules = shared_out(active_j, seconds)
    columns = zip(places, [*counts, Counts()], seconds, joules, strict=True)
    return tuple(Row(*place, counted, time_s, own_j) for place, counted, time_s, own_j in columns)


def shared_out(active_j: float | None, seconds: Sequence[float]) -> list[float | None]:
    """Joules by share of the time."""
    if active_j is None:
        return [None] * len(seconds)
    total_s = sum(seconds)
    return [active_j * time_s / total_s for time_s in seconds]


def by_kind(rows: Sequence[Row]) -> list[Row]:
    """One row for each kind, the sum of its parts, in the order in which kinds first occur."""
    found: dict[Kind, Row] = {}
    for row in rows:
        found[row.kind] = found[row.kind].plus(row) if row.kind in found else row
    return list(found.values())
