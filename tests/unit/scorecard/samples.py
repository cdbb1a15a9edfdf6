"""Reports of a fine-tune, an evaluation and a compression, as the commands write them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.basis import Basis
from evals.commands.evaluate import identity_of, report
from evals.evaluation import TaskResult, evaluate
from evals.evaluation_config import EvalConfig
from evals.served import QueryCost, RefusedError
from evals.tasks.base import Answer, Ask, Measure, Query, Rate, Rating, Score
from finetune.bill.journal import RunJournal, Seen
from finetune.bill.outcome import RunOutcome
from finetune.bill.phases import PhaseAccount, PhaseEnergy
from finetune.bill.quality import Losses, ModelQuality
from finetune.bill.report import Grams, ModelSizes, RunResult, build
from finetune.compressing.report import Costs, Side
from finetune.compressing.report import build as build_compression
from finetune.data.dataset import DataCounts, TrainingData
from finetune.recipe import Recipe
from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.meters.protocol import Reading, ReplayMeter
from greenllm.intervals import wilson

MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FOLDER = Path(__file__).parent / "golden"
MACHINE = "2 x AMD EPYC 9V74"
INTENSITY = Intensity(360.0, "FRA", "France", 2025, "a table", "CC BY 4.0")
IDENTITY = {
    "command": "greenllm finetune --data example", "began": MOMENT.isoformat(), "base": "base",
    "base_digest": "d1", "machine": MACHINE, "python": "3.12.0", "versions": {"greenllm": "0.1.0"},
}  # fmt: skip
BASIS = Basis(0.5, 0.25, 1e9, 0.42, 360.0, "FRA", "a table", 1.0)
COST = QueryCost(7.2, 3.6, 0.75, 10, 5, False, "modelled", BASIS)


def finetuned(
    *,
    training_j: float | None = 3600.0,
    embodied: EmbodiedModel | None = None,
    method: str = "lora",
    loss: float = 1.0,
) -> dict[str, Any]:
    """A report; training took 100 s, loading half of its joules in 20 s."""
    meter = ReplayMeter([Reading(0.0, {"cpu": 0.0})], measured=False, method="modelled")
    account = PhaseAccount(meter)
    if training_j is None:
        account.give_up("the sensor is gone")
    else:
        account.add("loading", PhaseEnergy(training_j / 2, 0.0, 0.0, 20.0, {"cpu": training_j / 2}))
        account.add("training", PhaseEnergy(training_j, 0.0, 0.0, 100.0, {"cpu": training_j}))
        account.add("compare", PhaseEnergy(1e6, 0.0, 0.0, 1e3, {"cpu": 1e6}))
    seen = Seen(steps=10, tokens=1000, padding=5, learnt=400)
    journal = RunJournal(seen).spent(account)
    before = ModelQuality(Losses((4.0, 6.0), (2, 2)), Losses((3.0,), (2,)), wilson(1, 4))
    after = ModelQuality(Losses((loss * 2, loss * 2), (2, 2)), Losses((3.5,), (2,)), wilson(3, 4))
    after = replace(after, exits={2: wilson(7, 8)})
    before = replace(before, exits={2: wilson(2, 8)})
    recipe = Recipe(model="base", data="example", output=Path("out"), method=method)  # type: ignore[arg-type]
    found = build(
        recipe, IDENTITY, TrainingData((), (), DataCounts(), "digest"),
        ModelSizes(5000, 100, 400), journal, account,
        RunResult(RunOutcome("completed"), before, after), Grams(INTENSITY, 1.2, embodied),
    )  # fmt: skip
    written: dict[str, Any] = json.loads(json.dumps({**found, "trials": [], "start": None}))
    return written


class Quiz:
    """Questions, every second of which is answered right; or texts to rate."""

    def __init__(self, name: str, measure: Measure = "accuracy", size: int = 4) -> None:
        self.name, self.measure, self._size = name, measure, size
        self.chance = 0.25 if measure == "accuracy" else None

    def count(self) -> int:
        return self._size

    def example(self, i: int) -> Query:
        return Ask(({"role": "user", "content": str(i)},)) if self.chance else Rate((("", "a"),))

    def score(self, i: int, answer: Answer) -> Score:
        return Score(float(i % 2)) if self.chance else Score(8.0, 4.0)


class Asked:
    """Answers at a cost, and refuses the first questions."""

    def __init__(self, cost: QueryCost, refused: int = 0) -> None:
        self._cost, self._refused = cost, refused

    async def answer(self, query: Query) -> tuple[Answer, QueryCost]:
        if isinstance(query, Ask) and int(query.turns[0]["content"]) < self._refused:
            raise RefusedError("too long")
        return Answer("a", (Rating(-1.0, 1),)), self._cost


def evaluated(
    cost: QueryCost = COST, *, refused: int = 0, url: str | None = None
) -> dict[str, Any]:
    """A result of two tasks, four and two examples, which took 10 s each."""

    async def ask(task: Quiz) -> TaskResult:
        found = await evaluate(Asked(cost, refused), task, 2, lambda done, count: None)
        return replace(found, duration_s=10.0)

    tasks = (Quiz("quiz"), Quiz("book", "bits per byte", 2))
    results = [asyncio.run(ask(task)) for task in tasks]
    words = ["eval", "generated", "--api-key", "my secret", "--serve", "--api-keys 'a b' --port 1"]
    identity = {**identity_of(EvalConfig(url=url), words, MOMENT), "machine": MACHINE}
    identity["versions"] = {"greenllm": "0.1.0"}
    written: dict[str, Any] = json.loads(json.dumps(report(identity, "bundled", results)))
    return written


def compressed(
    cost_j: float | None = 97.25, *, method: str = "prune", healed: bool = True
) -> dict[str, Any]:
    """A report: 1,000 parameters became 700, of 90 right answers of 100 are 88 left, in 20 s."""
    solved = [wilson(hits, 100) for hits in (90, 88)]
    before, after = (
        Side(parameters, 4 * parameters, share, 0.5, 0.1, 0.01, 0.2, {"a": share.value})
        for parameters, share in zip((1000, 700), solved, strict=True)
        if share is not None
    )
    phases = {"compressing": cost_j and cost_j - 80.0}
    phases |= {"training": cost_j and 80.0} if healed else {}
    costs = Costs(cost_j, 5.0, phases, "modelled:x", False, cost_j and 0.42, 20.0)
    identity = {
        "base": "big", "method": method, "command": "greenllm compress big", "machine": MACHINE,
        "began": MOMENT.isoformat(), "versions": {"greenllm": "0.1.0"},
    }  # fmt: skip
    grams = Grams(INTENSITY, 1.0, None)
    found = build_compression(identity, (before, after), costs, grams, 0.95, {})
    written: dict[str, Any] = json.loads(json.dumps(found))
    return written
