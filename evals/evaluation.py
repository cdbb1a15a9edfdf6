"""Quality and joules of a model on tasks, together.

Contract: every example counts: one the server refuses is wrong, and its reason is told; a text that
cannot be rated ends the evaluation. Joules are sums of the requests' own bills, so that what runs
beside them is not theirs; without bills they are None. Intervals are of the examples drawn, by
bootstrap; joules have the meter's uncertainty besides.

Not covered: comparing two models example by example.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evals.basis import sum_of, together
from evals.entry import BenchError
from evals.served import QueryCost, RefusedError
from evals.tasks.base import Answer, Query, Rate, Score, Task
from greenllm.intervals import Interval, bootstrap, wilson
from greenllm.scorecard.card import wh_per_1000_requests


class Model(Protocol):
    """What answers."""

    def answer(self, query: Query) -> Awaitable[tuple[Answer, QueryCost]]:
        """Ask or rate; `RefusedError` where it is not taken, `BenchError` where nothing is."""


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """What became of one example; what was refused has no cost. Seconds are the client's."""

    score: Score
    cost: QueryCost | None
    duration_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's examples, in their order, and how long they took together."""

    task: Task
    examples: Sequence[ExampleResult]
    duration_s: float

    def figure(self) -> Interval:
        """Accuracy, or bits per byte."""
        values = [example.score.value for example in self.examples]
        weights = [example.score.weight for example in self.examples]
        if self.task.measure == "accuracy" and all(value in (0, 1) for value in values):
            found = wilson(round(sum(values)), len(values))
        else:
            found = bootstrap(values, weights)
        if found is None:
            raise BenchError(f"{self.task.name} has no examples")
        return found

    def costs(self) -> list[QueryCost]:
        """Of every example that was answered."""
        return [example.cost for example in self.examples if example.cost is not None]

    def joules(self) -> list[float] | None:
        """Of each answered example; None where one is not known."""
        found = [cost.joules for cost in self.costs()]
        return None if None in found else [joules for joules in found if joules is not None]

    @property
    def total_j(self) -> float | None:
        """Of all that were answered; None where one is not known."""
        found = self.joules()
        return None if found is None else sum(found)

    @property
    def completion_tokens(self) -> int:
        """Generated for all that were answered."""
        return sum(cost.completion_tokens for cost in self.costs())

    def latency_s(self, share: float) -> float:
        """The time that so large a share of the answered examples took at most."""
        found = sorted(e.duration_s for e in self.examples if e.cost is not None)
        return found[max(0, math.ceil(share * len(found)) - 1)]

    def joules_per_correct(self) -> Interval | None:
        """All joules over the right answers: what a right answer costs, the wrong ones included."""
        joules = self.joules()
        if joules is None or self.task.measure != "accuracy":
            return None
        answered = [example.score.value for example in self.examples if example.cost is not None]
        return bootstrap(joules, answered)

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        figure, total_j = self.figure(), self.total_j
        per_correct = self.joules_per_correct()
        costs = self.costs()
        tokens = sum(cost.prompt_tokens + cost.completion_tokens for cost in costs)
        errors = [example.error for example in self.examples if example.error is not None]
        is_accuracy = self.task.measure == "accuracy"
        return {
            "measure": self.task.measure,
            "value": figure.as_dict(),
            "chance": self.task.chance,
            "refused": len(errors),
            "refusals": list(dict.fromkeys(errors))[:3],
            "duration_s": self.duration_s,
            "p50_s": self.latency_s(0.5),
            "p95_s": self.latency_s(0.95),
            "tokens": tokens,
            "completion_tokens": self.completion_tokens,
            "energy_j": total_j,
            "grams": sum_of([cost.grams for cost in costs]),
            "joules_per_example": None if total_j is None else total_j / len(costs),
            "wh_per_1000_requests": wh_per_1000_requests(total_j, len(costs)),
            "joules_per_token": total_j / tokens if total_j is not None and tokens else None,
            "joules_per_correct": None if per_correct is None else per_correct.as_dict(),
            "accuracy_per_joule": _over(figure.value, total_j, len(costs)) if is_accuracy else None,
            "accuracy_per_watt": _over(figure.value, total_j, self.duration_s)
            if is_accuracy
            else None,
        }


def _over(accuracy: float, total_j: float | None, parts: float) -> float | None:
    """Accuracy over the joules of one example, or over the mean watts of the requests."""
    return accuracy / (total_j / parts) if total_j and parts else None


async def evaluate(
    model: Model, task: Task, concurrency: int, progress: Callable[[int, int], None]
) -> TaskResult:
    """Ask everything, so many at a time.

    Raises:
        BenchError: the server fails, refuses everything, or a text cannot be rated.
    """
    count, done = task.count(), 0
    gate = asyncio.Semaphore(concurrency)

    async def one(i: int) -> ExampleResult:
        nonlocal done
        async with gate:
            found = await _example(model, task, i)
        done += 1
        progress(done, count)
        return found

    began_s = time.perf_counter()
    examples = await asyncio.gather(*(one(i) for i in range(count)))
    if count and all(example.error is not None for example in examples):
        raise BenchError(f"{task.name}: every example was refused: {examples[0].error}")
    return TaskResult(task, examples, time.perf_counter() - began_s)


async def _example(model: Model, task: Task, i: int) -> ExampleResult:
    query, began_s = task.example(i), time.perf_counter()
    try:
        answer, cost = await model.answer(query)
    except RefusedError as error:
        if isinstance(query, Rate):
            raise BenchError(f"{task.name}, example {i + 1}: {error}") from error
        return ExampleResult(Score(0.0), None, error=str(error))
    took_s = time.perf_counter() - began_s
    return ExampleResult(task.score(i, answer), cost, took_s)


def methods_of(results: Sequence[TaskResult]) -> Mapping[str, Any]:
    """How the joules were found: the meters' names, and whether all were measured."""
    costs = [cost for result in results for cost in result.costs()]
    known = [cost for cost in costs if cost.method is not None]
    return {
        "methods": sorted({cost.method for cost in known if cost.method is not None}),
        "measured": all(cost.is_measured for cost in known) if known else None,
    }


def together_of(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Of all tasks: what their joules rest on, and the watt-hours of 1,000 requests."""
    costs = [cost for result in results for cost in result.costs()]
    total_j = sum_of([cost.joules for cost in costs])
    return {
        **together([cost.basis for cost in costs]).as_dict(),
        "wh_per_1000_requests": wh_per_1000_requests(total_j, len(costs)),
    }
