"""What a run is going to cost, from a few batches that are computed and not learnt from.

Contract: the batches are the run's own, spread over all lengths, through the run's own loss and
backwards; no weight changes. Joules and seconds per token are scaled to the tokens of the whole
run and of a sweep's trials; evaluation is done once and counted as often as the run will. It is a
forecast and says how much its batches differed. Not covered: what the optimizer costs, which is
little for adapters and more for every weight; checkpoints; trials that compute more per token.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.bill.breakeven import at_best
from finetune.bill.phases import PhaseAccount, PhaseEnergy
from finetune.bill.report import answers_of
from finetune.data.encoding import Encoded
from finetune.files import JOURNAL
from finetune.plan.sweep import rungs, settings_of
from finetune.recipe import Recipe
from finetune.train.evaluation import evaluate
from finetune.train.setup import RunSetup
from finetune.train.trainer import Watched
from finetune.train.training import make_trainer, rows_for
from finetune.train.watch import RunWatch

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


def forecast(setup: RunSetup, account: PhaseAccount, model: Any) -> Forecast:
    """Compute some batches and scale; what it costs is booked to `loading`."""
    batches = sample(setup.data.train, setup.recipe.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        own = RunWatch(account, Path(folder) / JOURNAL, total_tokens=0)
        trainer = make_trainer(setup.aside(Path(folder)), model, own, 1, saves=False)
        _compute(trainer, batches[0], setup)  # the first one finds its kernels
        costs = [_cost(account, trainer, batch, setup) for batch in batches]
    evaluated = evaluate(setup, model, account)
    if evaluated is None:
        raise ValueError("only the main process evaluates, and makes plans")
    sizes = [sum(item.num_tokens for item in batch) for batch in batches]
    per_token_j = sum(cost.total_j for cost in costs) / sum(sizes)
    per_token_s = sum(cost.duration_s for cost in costs) / sum(sizes)
    steps, trials = setup.num_steps, _trials(setup.recipe, setup.num_steps)
    tokens = setup.tokens_of(steps)
    computed = tokens + setup.tokens_of(sum(trials))
    evaluations = len(trials) + _evaluations(setup, steps)
    evaluation_j, losses_j = evaluated.cost.total_j, evaluated.losses_j or 0.0
    losses_s = evaluated.cost.duration_s * (losses_j / evaluation_j if evaluation_j else 0.0)
    total_j = (
        account.spent().total_j + evaluation_j + evaluations * losses_j + per_token_j * computed
    )
    answers = answers_of(evaluated)
    known = account.is_known
    return Forecast(
        steps,
        tokens,
        2 * evaluated.cost.duration_s + evaluations * losses_s + per_token_s * computed,
        total_j if known else None,
        per_token_j if known else None,
        _spread([cost.total_j / size for cost, size in zip(costs, sizes, strict=True)]),
        at_best(total_j, answers) if known and answers is not None else None,
    )


def _trials(recipe: Recipe, steps: int) -> list[int]:
    """Steps of every trial of a sweep that is still to be made."""
    if recipe.sweep is None:
        return []
    found = rungs(len(settings_of(recipe.sweep)), steps)
    return [length for count, length in found for _ in range(count)]


def _evaluations(setup: RunSetup, steps: int) -> int:
    """Times that the validation loss is computed on the way."""
    every = setup.recipe.eval_every
    return 0 if every is None or not setup.data.validation else steps // every


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
    account: PhaseAccount, trainer: Watched, batch: Sequence[Encoded], setup: RunSetup
) -> PhaseEnergy:
    account.read()
    before = account.spent()
    _compute(trainer, batch, setup)
    account.read()
    return account.spent().minus(before)


def _compute(trainer: Watched, batch: Sequence[Encoded], setup: RunSetup) -> None:
    """Forwards and backwards; the gradients are thrown away."""
    device, model = setup.device, trainer.model
    inputs = trainer.data_collator(list(rows_for(setup.recipe)(batch)))
    inputs = {
        name: part.to(device.name) if isinstance(part, torch.Tensor) else part
        for name, part in inputs.items()
    }
    model.train()
    with device.autocast():
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    model.zero_grad(set_to_none=True)
