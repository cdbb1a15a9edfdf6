"""What a run is going to cost, from a few batches that are computed and not learnt from.

Contract: the batches are the run's own, spread over all lengths, forwards and backwards; no weight
changes. Joules and seconds per token are scaled to the tokens of the whole run; scoring is done
once and counted twice. It is a forecast and says how much its batches differed. Not covered: what
the optimizer costs, which is little for adapters and more for every weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.encoding import Encoded
from finetune.model import Place
from finetune.phases import PhaseAccount
from finetune.subject import Subject

_BATCHES = 6
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Forecast:
    """The whole run; joules are None where the meter knows none. `spread` is relative."""

    steps: int
    tokens: int
    duration_s: float
    joules: float | None
    joules_per_token: float | None
    spread: float


def forecast(subject: Subject, account: PhaseAccount, model: Any, steps: int) -> Forecast:
    """Compute some batches and scale; what it costs is booked to `loading`."""
    batches = sample(subject.data.train, subject.recipe.batch_size)
    _compute(model, batches[0], subject)  # the first one finds its kernels
    costs = [_cost(account, model, batch, subject) for batch in batches]
    looked_j, looked_s = _look(account, subject, model)
    tokens = subject.total_tokens(steps)
    per_token_s = sum(seconds for seconds, _, _ in costs) / sum(count for _, _, count in costs)
    rates = [joules / count for _, joules, count in costs]
    per_token_j = sum(joules for _, joules, _ in costs) / sum(count for _, _, count in costs)
    total_j = account.spent().total_j + looked_j + per_token_j * tokens
    return Forecast(
        steps,
        tokens,
        looked_s + per_token_s * tokens,
        total_j if account.is_known else None,
        per_token_j if account.is_known else None,
        statistics.stdev(rates) / statistics.mean(rates) if statistics.mean(rates) else 0.0,
    )


def sample(items: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Batches of examples of like lengths, evenly spread over all lengths."""
    ranked = sorted(items, key=lambda item: len(item.ids))
    batches = [list(ranked[i : i + size]) for i in range(0, len(ranked), size)]
    every = max(1, len(batches) // _BATCHES)
    return batches[::every][:_BATCHES]


def _cost(
    account: PhaseAccount, model: Any, batch: Sequence[Encoded], subject: Subject
) -> tuple[float, float, int]:
    account.read()
    before = account.spent()
    _compute(model, batch, subject)
    account.read()
    spent = account.spent().minus(before)
    return spent.duration_s, spent.total_j, sum(len(item.ids) for item in batch)


def _look(account: PhaseAccount, subject: Subject, model: Any) -> tuple[float, float]:
    """What scoring once costs, in joules and seconds."""
    account.read()
    before = account.spent()
    subject.look(model)
    account.read()
    spent = account.spent().minus(before)
    return spent.total_j, spent.duration_s


def _compute(model: Any, batch: Sequence[Encoded], subject: Subject) -> None:
    """Forwards and backwards; the gradients are thrown away."""
    place: Place = subject.place
    width = max(len(item.ids) for item in batch)
    ids = torch.full((len(batch), width), subject.tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), IGNORED)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, item in enumerate(batch):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        learnt = torch.tensor(item.learnt)
        labels[row, : len(item.ids)] = torch.where(learnt, ids[row, : len(item.ids)], IGNORED)
        mask[row, : len(item.ids)] = 1
    ids, labels, mask = (part.to(place.device) for part in (ids, labels, mask))
    model.train()
    with torch.autocast(place.device.split(":")[0], torch.bfloat16, enabled=place.is_half):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    model.zero_grad(set_to_none=True)
