"""What a run is going to cost, from a few batches that are computed and not learnt from.

Contract: the batches are the run's own, spread over all lengths, through the run's own loss and
backwards; no weight changes. Joules and seconds per token are scaled to the tokens of the whole
run; scoring is done once and counted twice. It is a forecast and says how much its batches
differed. Not covered: what the optimizer costs, which is little for adapters and more for every
weight.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.breakeven import at_best
from finetune.encoding import Encoded
from finetune.phases import PhaseAccount
from finetune.quality import Quality
from finetune.report import answers_of
from finetune.subject import Subject
from finetune.trainer import Watched
from finetune.training import make_trainer, rows_for
from finetune.watch import Watch

_BATCHES = 6


@dataclass(frozen=True, slots=True)
class Forecast:
    """The whole run; joules are None where the meter knows none. `spread` is relative.

    `break_even` are the fewest solved requests that can make up for it; None where the base solves
    nothing, or all already.
    """

    steps: int
    tokens: int
    duration_s: float
    joules: float | None
    joules_per_token: float | None
    spread: float
    break_even: int | None


def forecast(subject: Subject, account: PhaseAccount, model: Any, steps: int) -> Forecast:
    """Compute some batches and scale; what it costs is booked to `loading`."""
    batches = sample(subject.data.train, subject.recipe.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(subject, recipe=replace(subject.recipe, name=None, output=Path(folder)))
        own = Watch(account, Path(folder) / "journal.json", total_tokens=0)
        trainer = make_trainer(trial, model, own, steps, saves=False)
        _compute(trainer, batches[0], subject)  # the first one finds its kernels
        costs = [_cost(account, trainer, batch, subject) for batch in batches]
    looked, looked_j, looked_s = _look(account, subject, model)
    tokens = subject.total_tokens(steps)
    per_token_s = sum(seconds for seconds, _, _ in costs) / sum(count for _, _, count in costs)
    rates = [joules / count for _, joules, count in costs]
    per_token_j = sum(joules for _, joules, _ in costs) / sum(count for _, _, count in costs)
    answers = None if looked is None else answers_of(looked)
    total_j = account.spent().total_j + looked_j + per_token_j * tokens
    return Forecast(
        steps,
        tokens,
        looked_s + per_token_s * tokens,
        total_j if account.is_known else None,
        per_token_j if account.is_known else None,
        _spread(rates),
        at_best(total_j, answers) if account.is_known and answers is not None else None,
    )


def _spread(rates: Sequence[float]) -> float:
    mean = statistics.mean(rates)
    return statistics.stdev(rates) / mean if mean and len(rates) > 1 else 0.0


def sample(items: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Batches of examples of like lengths, evenly spread over all lengths."""
    ranked = sorted(items, key=lambda item: item.longest)
    batches = [list(ranked[i : i + size]) for i in range(0, len(ranked), size)]
    count = min(_BATCHES, len(batches))
    return [batches[i * (len(batches) - 1) // max(1, count - 1)] for i in range(count)]


def _cost(
    account: PhaseAccount, trainer: Watched, batch: Sequence[Encoded], subject: Subject
) -> tuple[float, float, int]:
    account.read()
    before = account.spent()
    _compute(trainer, batch, subject)
    account.read()
    spent = account.spent().minus(before)
    return spent.duration_s, spent.total_j, sum(item.num_tokens for item in batch)


def _look(
    account: PhaseAccount, subject: Subject, model: Any
) -> tuple[Quality | None, float, float]:
    """Quality now, and what scoring once costs in joules and seconds."""
    account.read()
    before = account.spent()
    found = subject.look(model, account)
    account.read()
    spent = account.spent().minus(before)
    return found, spent.total_j, spent.duration_s


def _compute(trainer: Watched, batch: Sequence[Encoded], subject: Subject) -> None:
    """Forwards and backwards; the gradients are thrown away."""
    place, model = subject.place, trainer.model
    rows = rows_for(subject.recipe)(batch)
    inputs = trainer.data_collator(list(rows))
    inputs = {name: part.to(place.device) for name, part in inputs.items()}
    model.train()
    with torch.autocast(place.device.split(":")[0], torch.bfloat16, enabled=place.is_half):
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    model.zero_grad(set_to_none=True)
