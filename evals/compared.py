"""Two models on the same tasks, in turns: quality, and joules per answer and token.

Contract: each has a server of its own, both are loaded all the time, and one after the other
answers everything, round by round; joules are medians over rounds of the requests' own bills, None
where a server does not say. Accuracy is over all examples of the first round.

Not covered: tasks that are not right or wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from evals.basis import sum_of
from evals.evaluation import TaskResult, evaluate, methods_of
from evals.served import ServedModel, connect
from evals.tasks.base import Task
from greenllm.config import ConfigError
from greenllm.intervals import Interval, wilson

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One model; `by_task` are the shares that were right."""

    solved: Interval
    joules_per_answer: float | None
    joules_per_token: float | None
    seconds_per_token: float
    p95_s: float
    by_task: Mapping[str, float]
    energy: Mapping[str, Any]


def require_accuracies(tasks: Sequence[Task]) -> None:
    """Refuse tasks whose answers are not right or wrong.

    Raises:
        ConfigError: it names the task.
    """
    for task in tasks:
        if task.measure != "accuracy":
            raise ConfigError(f"--tasks {task.name}: models are compared by accuracy")


async def compare(
    urls: Mapping[str, str],
    tasks: Sequence[Task],
    rounds: int,
    concurrency: int,
    say: Callable[[str], None],
) -> dict[str, Scored]:
    """Ask everyone everything, so many times.

    Raises:
        BenchError: a server fails.
    """
    found: dict[str, list[list[TaskResult]]] = {name: [] for name in urls}
    async with AsyncExitStack() as stack:
        models = {
            name: await stack.enter_async_context(connect(url, None, None, _TIMEOUT_S))
            for name, url in urls.items()
        }
        for number in range(rounds):
            # Who is asked first in a round may find the machine in another state.
            for name in sorted(models, reverse=number % 2 == 1):
                model = models[name]
                found[name].append(await _all(model, tasks, concurrency))
            say(f"scoring: round {number + 1} of {rounds}")
    return {name: scored(results) for name, results in found.items()}


async def _all(model: ServedModel, tasks: Sequence[Task], concurrency: int) -> list[TaskResult]:
    return [await evaluate(model, task, concurrency, lambda done, count: None) for task in tasks]


def scored(rounds: Sequence[Sequence[TaskResult]]) -> Scored:
    """A model's rounds together."""
    values = [example.score.value for result in rounds[0] for example in result.examples]
    solved = wilson(round(sum(values)), len(values))
    if solved is None:
        raise ConfigError("--tasks: there are no examples")
    costs = [sum_of([result.total_j for result in results]) for results in rounds]
    tokens = [sum(result.completion_tokens for result in results) for results in rounds]
    seconds = [sum(result.duration_s for result in results) for results in rounds]
    answers = len(values)
    return Scored(
        solved,
        _median([None if cost is None else cost / answers for cost in costs]),
        _median(
            [None if c is None or not t else c / t for c, t in zip(costs, tokens, strict=True)]
        ),
        statistics.median(s / max(1, t) for s, t in zip(seconds, tokens, strict=True)),
        statistics.median(max(r.latency_s(0.95) for r in results) for results in rounds),
        {result.task.name: result.figure().value for result in rounds[0]},
        methods_of([result for results in rounds for result in results]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.median(v for v in values if v is not None)
