"""Tasks in parts, so that what is compared can take turns, and their results put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.evaluation import TaskResult
from evals.tasks.base import Answer, Measure, Query, Score, Task


@dataclass(frozen=True, slots=True)
class Slice:
    """Some examples of a task."""

    task: Task
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def measure(self) -> Measure:
        """The task's."""
        return self.task.measure

    @property
    def chance(self) -> float | None:
        """The task's."""
        return self.task.chance

    def count(self) -> int:
        """Of the slice."""
        return self.stop - self.start

    def example(self, i: int) -> Query:
        """Of the slice."""
        return self.task.example(self.start + i)

    def score(self, i: int, answer: Answer) -> Score:
        """Of the slice."""
        return self.task.score(self.start + i, answer)


def slices(tasks: Sequence[Task], parts: int) -> list[list[Slice]]:
    """Every task's examples, shared out evenly; a part without examples is left out."""
    found: list[list[Slice]] = []
    for part in range(parts):
        cut = []
        for task in tasks:
            start, stop = (task.count() * edge // parts for edge in (part, part + 1))
            if stop > start:
                cut.append(Slice(task, start, stop))
        if cut:
            found.append(cut)
    return found


def whole(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Slices of a task together."""
    found: dict[str, list[TaskResult]] = {}
    for result in results:
        found.setdefault(result.task.name, []).append(result)
    return [
        TaskResult(
            parts[0].task,
            [example for part in parts for example in part.examples],
            sum(part.duration_s for part in parts),
        )
        for parts in found.values()
    ]
