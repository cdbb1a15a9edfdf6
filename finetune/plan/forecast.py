"""What a run is going to cost, from a few batches that are computed and not learnt from.

Contract: the batches are the run's own, spread over all lengths, through the run's own loss and
backwards; no weight changes. Joules and seconds per token are scaled to the tokens of the whole
run and of a sweep's trials; scoring is done once and counted as often as the run will. It is a
forecast and says how much its batches differed. Not covered: what the optimizer costs, which is
little for adapters and more for every weight; checkpoints; trials that compute more per token.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.bill.breakeven import at_best
from finetune.bill.phases import PhaseAccount
from finetune.bill.report import answers_of
from finetune.data.encoding import Encoded
from finetune.plan.sweep import rungs, settings_of
from finetune.recipe import Recipe
from finetune.train.subject import Subject
from finetune.train.trainer import Watched
from finetune.train.training import make_trainer, rows_for
from finetune.train.watch import Watch

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
    looked = subject.look(model, account)
    if looked is None:
        raise ValueError("only the main process looks, and makes plans")
    tokens = subject.total_tokens(steps)
    trials = _trials(subject.recipe, steps)
    per_token_s = sum(seconds for seconds, _, _ in costs) / sum(count for _, _, count in costs)
    rates = [joules / count for _, joules, count in costs]
    per_token_j = sum(joules for _, joules, _ in costs) / sum(count for _, _, count in costs)
    computed = tokens + subject.total_tokens(sum(trials))
    looked_j, small_j = looked.cost.total_j, looked.losses_j or 0.0
    small_looks = len(trials) + _looks(subject, steps)
    small_s = looked.cost.duration_s * (small_j / looked_j if looked_j else 0.0)
    answers = answers_of(looked)
    total_j = account.spent().total_j + looked_j + small_looks * small_j + per_token_j * computed
    return Forecast(
        steps,
        tokens,
        2 * looked.cost.duration_s + small_looks * small_s + per_token_s * computed,
        total_j if account.is_known else None,
        per_token_j if account.is_known else None,
        _spread(rates),
        at_best(total_j, answers) if account.is_known and answers is not None else None,
    )


def _trials(recipe: Recipe, steps: int) -> list[int]:
    """Steps of every trial of a sweep that is still to be made."""
    if recipe.sweep is None:
        return []
    found = rungs(len(settings_of(recipe.sweep)), steps)
    return [length for count, length in found for _ in range(count)]


def _looks(subject: Subject, steps: int) -> int:
    """Looks at the validation loss on the way."""
    every = subject.recipe.eval_every
    return 0 if every is None or not subject.data.validation else steps // every


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


def _compute(trainer: Watched, batch: Sequence[Encoded], subject: Subject) -> None:
    """Forwards and backwards; the gradients are thrown away."""
    place, model = subject.place, trainer.model
    rows = rows_for(subject.recipe)(batch)
    inputs = trainer.data_collator(list(rows))
    inputs = {
        name: part.to(place.device) if isinstance(part, torch.Tensor) else part
        for name, part in inputs.items()
    }
    model.train()
    with torch.autocast(place.device.split(":")[0], torch.bfloat16, enabled=place.is_half):
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    model.zero_grad(set_to_none=True)
