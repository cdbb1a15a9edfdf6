"""Precision, guessing and batch size against each other: `python -m evals.studies.techniques`.

A server for each precision, all of them loaded; the same questions to each, with each way of
guessing and so many in flight, in turns, round by round. For a model that chats the questions are
the generated tasks', so that quality and joules come from the same requests; a random model is
asked for texts of a fixed length, and has no quality. Joules are the requests' own, idle share
included; with several servers loaded the machine's idle power is on whoever answers. Every server
has one thread and no prefix cache, as every round asks the same.

Not covered: approximate answers (see `evals.studies.speculation`), power limits of GPUs.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import BenchError, finish, split_names
from evals.evaluation import Result, evaluate, methods_of
from evals.lab import RESULTS, running_server, save
from evals.served import connect
from evals.studies.ratios import paired_ratio
from evals.studies.techniques_report import draw, markdown
from evals.tasks.base import Answer, Ask, Measure, Query, Score, Task
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from greenllm.intervals import wilson

console = Console(stderr=True)
_WORDS = ("the", "fox", "ran", "over", "a", "hill", "and", "saw", "one", "owl", "by", "night")
_TIMEOUT_S = 600.0
# Servers must not differ by what they find out about threads when they start.
THREADS = "1"
Cell = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Joined:
    """Several tasks as one, in random order, so that a batch stays full to the end."""

    parts: Sequence[tuple[Task, int]]
    name: str = "all"
    measure: Measure = "accuracy"
    chance: float | None = None

    def count(self) -> int:
        """Of all together."""
        return len(self.parts)

    def example(self, i: int) -> Query:
        """Of the task it is from."""
        task, place = self.parts[i]
        return task.example(place)

    def score(self, i: int, answer: Answer) -> Score:
        """By the task it is from."""
        task, place = self.parts[i]
        return task.score(place, answer)


@dataclass(frozen=True, slots=True)
class Continuing:
    """Beginnings to go on from; nothing about it is right or wrong."""

    size: int
    max_tokens: int
    name: str = "continuing"
    measure: Measure = "accuracy"
    chance: float | None = None

    def count(self) -> int:
        """So many."""
        return self.size

    def example(self, i: int) -> Query:
        """Some words."""
        words = random.Random(i).choices(_WORDS, k=48)
        return Ask(({"role": "user", "content": " ".join(words)},), self.max_tokens)

    def score(self, i: int, answer: Answer) -> Score:
        """Nothing is known."""
        return Score(0.0)


@dataclass(slots=True)
class Rounds:
    """What one cell did, round by round."""

    results: list[Result] = field(default_factory=list)

    def joules_per_token(self) -> list[float]:
        """Idle share included; a server that does not know joules ends the benchmark."""
        return [_joules(result) / result.completion_tokens for result in self.results]

    def summary(self, *, has_quality: bool) -> dict[str, Any]:
        """Medians over rounds."""
        first = self.results[0]
        right = sum(round(example.score.value) for example in first.examples)
        found = wilson(right, len(first.examples))
        return {
            "joules_per_token": statistics.median(self.joules_per_token()),
            "tokens_per_s": statistics.median(
                r.completion_tokens / r.duration_s for r in self.results
            ),
            "p50_s": statistics.median(r.latency_s(0.5) for r in self.results),
            "p95_s": statistics.median(r.latency_s(0.95) for r in self.results),
            "quality": found.as_dict() if has_quality and found else None,
        }


def _joules(result: Result) -> float:
    if result.total_j is None:
        raise BenchError("the server knows no joules")
    return result.total_j


def questions(limit: int) -> Joined:
    """Generated tasks, so many questions of each."""
    generated = generated_tasks()
    tasks = find_tasks(["generated"], generated, limit=limit, shots=0, seed=11)
    parts = [(task, i) for task in tasks for i in range(task.count())]
    return Joined(random.Random(1).sample(parts, len(parts)))


async def one_round(
    urls: Mapping[str, str],
    ways: Sequence[str],
    task: Task,
    batches: Sequence[int],
    cells: dict[Cell, Rounds],
    number: int,
) -> None:
    """Every precision, way of guessing and batch size once; who is first changes every round."""
    fixed = {"ignore_eos": True} if isinstance(task, Continuing) else {}
    for batch in batches:
        for precision in sorted(urls, reverse=number % 2 == 1):
            url = urls[precision]
            async with connect(url, None, None, _TIMEOUT_S) as model:
                for way in reversed(ways) if number % 2 else ways:
                    settings = {"speculative": {"method": way}, **fixed}
                    asked = replace(model, settings=settings)
                    found = await evaluate(asked, task, batch, lambda done, count: None)
                    cells.setdefault((precision, way, batch), Rounds()).results.append(found)


def figures(
    cells: Mapping[Cell, Rounds], precisions: Sequence[str], *, has_quality: bool
) -> dict[str, Any]:
    """Each cell beside the first precision without guesses, at the same batch size.

    And beside its own precision without guesses.
    """
    found: dict[str, Any] = {}
    first = precisions[0]
    ordered = sorted(cells.items(), key=lambda item: precisions.index(item[0][0]))
    for (precision, way, batch), rounds in ordered:
        plain = cells[first, "off", batch].joules_per_token()
        cell = rounds.summary(has_quality=has_quality)
        unguessed = cells[precision, "off", batch].joules_per_token()
        cell["joules_over_plain"] = paired_ratio(rounds.joules_per_token(), plain)
        cell["joules_over_off"] = paired_ratio(rounds.joules_per_token(), unguessed)
        found.setdefault(precision, {}).setdefault(way, {})[str(batch)] = cell
    return found


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    draft_model: Annotated[str, typer.Option(help="Draft model, or '' for none.")] = "",
    precisions: Annotated[str, typer.Option(help="--quantize of the servers.")] = "none,int8,int4",
    ways: Annotated[str, typer.Option(help="Ways of guessing.")] = "off,early_exit,auto",
    batches: Annotated[str, typer.Option(help="Requests in flight.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="Rounds of all.")] = 3,
    limit: Annotated[int, typer.Option(help="Questions of each task, or texts.")] = 6,
    tokens: Annotated[int, typer.Option(help="Tokens a text; 0: generated tasks.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "techniques",
) -> None:
    """Measure the techniques against each other, interleaved."""
    task: Task = Continuing(limit, tokens) if tokens else questions(limit)
    sizes, chosen = [int(size) for size in batches.split(",")], split_names(ways)
    if "off" not in chosen:
        raise BenchError("--ways needs off, which all are compared with")
    extra = ["--draft-model", draft_model] if draft_model else []
    cells: dict[Cell, Rounds] = {}
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for precision in split_names(precisions):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = ["--quantize", precision, "--speculative", "auto", *extra]
            options += ["--no-prefix-cache", "--threads", THREADS]
            urls[precision], _ = stack.enter_context(running_server(model, folder, *options))
        for number in range(-1, rounds):
            into: dict[Cell, Rounds] = cells if number >= 0 else {}
            asyncio.run(one_round(urls, chosen, task, sizes, into, number))
            console.print(f"round {number + 1}/{rounds}")
    all_results = [result for one in cells.values() for result in one.results]
    about: dict[str, Any] = {"model": Path(model).name, "rounds": rounds}
    about |= {"questions": task.count()}
    about |= {"energy": dict(methods_of(all_results))}
    result = {**about, "precisions": figures(cells, list(urls), has_quality=not tokens)}
    path = save(name, result, module="techniques")
    draw(result, RESULTS / f"{name}.svg")
    (RESULTS / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    console.print(markdown(result))
    console.print(f"written to {path}")


if __name__ == "__main__":
    finish("evals.studies.techniques", lambda: typer.run(main))
