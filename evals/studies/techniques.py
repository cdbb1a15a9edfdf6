"""Precision, draft tokens and batch size against each other: `python -m evals.studies.techniques`.

Question: which of them saves joules, and what do they save together? Arms: a server for each
precision, all of them loaded; the same questions to each, with each way of drafting and so many in
flight, in turns, round by round. Measure: for a model that chats the questions are the generated
tasks', so that quality and joules come from the same requests; a random model is asked for texts of
a fixed length, and has no quality. Joules are the requests' own, idle share included; with several
servers loaded the machine's idle power is on whoever answers. Every server has one thread and no
prefix cache, as every round asks the same.

Not covered: approximate answers (see `evals.studies.speculation`), power limits of GPUs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.entry import BenchError
from evals.evaluation import TaskResult, evaluate, methods_of
from evals.served import connect
from evals.studies import study
from evals.studies.load import serve_all
from evals.studies.ratios import paired_ratio, spread_of
from evals.tables import ratio, rows_of, table, value
from evals.tasks.base import Answer, Ask, Measure, Query, Score, Task
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from greenllm.intervals import wilson
from greenllm.model.options import own_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = ("the", "fox", "ran", "over", "a", "hill", "and", "saw", "one", "owl", "by", "night")
_STYLES = ("o-", "o--", "o:", "o-.", "s-")
_TIMEOUT_S = 600.0
# Servers must not differ by what they find out about threads when they start.
_OPTIONS = ("--speculative", "auto", "--no-prefix-cache", "--threads", "1")
Cells = Mapping[tuple[str, str, int], Sequence[TaskResult]]


def page(result: study.Result) -> str:
    """One row for each cell, batch by batch; ratios are medians of those of each round."""
    columns = {
        "weights": value("weights"),
        "guessing": value("way"),
        "batch": value("batch"),
        "mJ/token": value("joules_per_token", ".3f", 1e3),
        f"x plain ({spread_of(result['rounds'])})": ratio("joules_over_plain"),
        "tok/s": value("tokens_per_s", ",.0f"),
        "p50 s": value("p50_s", ".3f"),
        "p95 s": value("p95_s", ".3f"),
        "right answers": value("quality.value", ".1%"),
    }
    rows = rows_of(result["precisions"], "weights", "way", "batch")
    return table(columns, sorted(rows, key=lambda row: int(row["batch"]))) + "\n"


def plot(figure: Figure, result: study.Result) -> None:
    """Joules per token by batch size, a line for each precision and way of drafting."""
    lines = {}
    for colour, (precision, ways) in enumerate(result["precisions"].items()):
        for style, (way, cells) in zip(itertools.cycle(_STYLES), ways.items(), strict=False):
            sizes = [int(size) for size in cells]
            values = [1e3 * cell["joules_per_token"] for cell in cells.values()]
            lines[f"{precision}, {way}"] = (sizes, values, f"{style}C{colour}")
    figure.set_size_inches(8.4, 4.8)
    study.curves(
        figure.subplots(),
        lines,
        ticks=sizes,
        yscale="log",
        xlabel="requests in flight",
        ylabel="mJ per token",
        title=f"{result['model']} ({', '.join(result['energy']['methods'])})",
    )


STUDY = study.Study("techniques", page, plot)


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


def joules_per_token(rounds: Sequence[TaskResult]) -> list[float]:
    """Of each round, idle share included.

    Raises:
        BenchError: a server does not know joules.
    """
    joules = [result.total_j for result in rounds if result.total_j is not None]
    if len(joules) < len(rounds):
        raise BenchError("the server knows no joules")
    tokens = [result.completion_tokens for result in rounds]
    return [total_j / count for total_j, count in zip(joules, tokens, strict=True)]


def summary(rounds: Sequence[TaskResult], *, has_quality: bool) -> dict[str, Any]:
    """Medians over rounds."""
    first = rounds[0]
    right = sum(round(example.score.value) for example in first.examples)
    found = wilson(right, len(first.examples))
    return {
        "joules_per_token": statistics.median(joules_per_token(rounds)),
        "tokens_per_s": statistics.median(r.completion_tokens / r.duration_s for r in rounds),
        "p50_s": statistics.median(r.latency_s(0.5) for r in rounds),
        "p95_s": statistics.median(r.latency_s(0.95) for r in rounds),
        "quality": found.as_dict() if has_quality and found else None,
    }


def questions(limit: int) -> Joined:
    """Generated tasks, so many questions of each."""
    tasks = find_tasks(["generated"], generated_tasks(), limit=limit, shots=0, seed=11)
    parts = [(task, i) for task in tasks for i in range(task.count())]
    return Joined(random.Random(1).sample(parts, len(parts)))


async def turn(url: str, way: str, task: Task, batch: int) -> TaskResult:
    """All questions to one server, with one way of drafting, so many in flight."""
    fixed = {"ignore_eos": True} if isinstance(task, Continuing) else {}
    async with connect(url, None, None, _TIMEOUT_S) as model:
        asked = replace(model, settings={"speculative": {"method": way}, **fixed})
        return await evaluate(asked, task, batch, lambda done, count: None)


def figures(cells: Cells, precisions: Sequence[str], *, has_quality: bool) -> dict[str, Any]:
    """Each cell beside the first precision without draft tokens, at the same batch size.

    And beside its own precision without draft tokens.
    """
    found: dict[str, Any] = {precision: {} for precision in precisions}
    for (precision, way, batch), rounds in cells.items():
        joules = joules_per_token(rounds)
        plain, off = (joules_per_token(cells[p, "off", batch]) for p in (precisions[0], precision))
        found[precision].setdefault(way, {})[str(batch)] = {
            **summary(rounds, has_quality=has_quality),
            "joules_over_plain": paired_ratio(joules, plain),
            "joules_over_off": paired_ratio(joules, off),
        }
    return found


def main(
    model: study.Model = "bundled",
    draft_model: study.DraftModel = "",
    precisions: Annotated[str, typer.Option(help="--quantize of the servers.")] = "none,int8,int4",
    ways: Annotated[str, typer.Option(help="Ways of drafting.")] = "off,early_exit,auto",
    batches: study.Batches = "1,8,32",
    rounds: study.Rounds = 3,
    limit: Annotated[int, typer.Option(help="Questions of each task, or texts.")] = 6,
    tokens: Annotated[int, typer.Option(help="Tokens a text; 0: generated tasks.")] = 0,
    name: study.Name = STUDY.name,
) -> None:
    """Measure the techniques against each other, interleaved."""
    task: Task = Continuing(limit, tokens) if tokens else questions(limit)
    sizes, chosen = study.split_numbers(batches, "--batches"), study.split_names(ways)
    if "off" not in chosen:
        raise BenchError("--ways needs off, which all are compared with")
    arms = {precision: ("--quantize", precision) for precision in study.split_names(precisions)}
    draft = ("--draft-model", draft_model) if draft_model else ()
    groups = ([(*pair, size) for pair in itertools.product(arms, chosen)] for size in sizes)
    with serve_all(model, arms, *_OPTIONS, *draft) as servers:

        def ask(key: tuple[str, str, int], number: int) -> TaskResult:
            precision, way, batch = key
            return asyncio.run(turn(servers[precision].url, way, task, batch))

        cells = study.interleave(ask, rounds, *groups, warm_up=True)
    about: dict[str, Any] = {"model": own_name(model), "rounds": rounds}
    about |= {"questions": task.count()}
    about |= {"energy": dict(methods_of([one for results in cells.values() for one in results]))}
    found_all = figures(cells, list(arms), has_quality=not tokens)
    STUDY.report({**about, "precisions": found_all}, name)


if __name__ == "__main__":
    STUDY.run(main)
