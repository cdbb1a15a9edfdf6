"""What a profile has found: rows of counts, seconds and joules that add up to the step.

Contract: the rows are every part and the rest, which is in no part; their seconds sum to the step
with stopwatches, their joules to the step's active ones. Joules are shared out by time. What is
unknown is None, never 0. What is counted and what is not says `observation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from typing import Literal

from evals.profiling.config import ProfileConfig
from evals.profiling.energy import StepEnergy

Kind = Literal["embedding", "norms", "attention", "MLP", "final norm", "head", "rest"]


@dataclass(frozen=True, slots=True)
class Counts:
    """FLOPs and bytes of one part in one step."""

    flops: int = 0
    masked_flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def moved_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte; None where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else None


@dataclass(frozen=True, slots=True)
class Row:
    """One part, or the sum of `count` like it; `layer` is None outside of layers and for sums."""

    kind: Kind
    layer: int | None
    counts: Counts
    time_s: float
    active_j: float | None
    count: int = 1

    @property
    def name(self) -> str:
        """How it is called in a table."""
        if self.count > 1:
            return f"{self.kind}, mean of a layer"
        return self.kind if self.layer is None else f"layer {self.layer}: {self.kind}"

    def __add__(self, other: Row) -> Row:
        """Both together, without a layer."""
        known = self.active_j is not None and other.active_j is not None
        return Row(
            self.kind,
            None,
            self.counts + other.counts,
            self.time_s + other.time_s,
            (self.active_j or 0.0) + (other.active_j or 0.0) if known else None,
            self.count + other.count,
        )


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
    """Everything that was found; `plain_step_s` is the step without stopwatches."""

    subject: Subject
    config: ProfileConfig
    rows: tuple[Row, ...]
    plain_step_s: float
    energy: StepEnergy

    @property
    def total(self) -> Row:
        """All rows together."""
        return reduce(Row.__add__, self.rows)

    @property
    def overhead(self) -> float:
        """Share that stopwatches add to the step."""
        return self.total.time_s / self.plain_step_s - 1


def rows_of(
    parts: Sequence[tuple[Kind, int | None]],
    counts: Sequence[Counts],
    seconds: Sequence[float],
    active_j: float | None,
) -> tuple[Row, ...]:
    """A row for each part and one for the rest, whose seconds are the last; joules by the time."""
    places: list[tuple[Kind, int | None]] = [*parts, ("rest", None)]
    total_s = sum(seconds)
    return tuple(
        Row(*place, counted, time_s, None if active_j is None else active_j * time_s / total_s)
        for place, counted, time_s in zip(places, [*counts, Counts()], seconds, strict=True)
    )


def by_kind(rows: Sequence[Row]) -> list[Row]:
    """One row for each kind, the sum of its parts, in the order in which kinds first occur."""
    found: dict[Kind, Row] = {}
    for row in rows:
        found[row.kind] = found[row.kind] + row if row.kind in found else row
    return list(found.values())
