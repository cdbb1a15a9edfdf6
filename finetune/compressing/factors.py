"""Whether two factors in place of a matrix save anything here: measured, both models in turns.

Contract: the same greedy decoding by transformers, so many tokens for so many prompts; joules are
the account's, idle share included, medians over rounds; quality is the loss on held-out examples.
No checkpoint comes of it: no runner here computes factors. Not covered: factors trained further.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from finetune.bill.phases import PHASES, PhaseAccount
from finetune.compressing.making import Source
from finetune.compressing.weights import factorize
from finetune.train.evaluation import losses_of
from finetune.train.model import device_of

_TOKENS = 48
_BATCHES = (1, 8)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Of one model at one batch size; joules are None where the meter knows none."""

    batch_size: int
    seconds_per_token: float
    joules_per_token: float | None


def measure(source: Source, share: float, rounds: int, account: PhaseAccount) -> dict[str, Any]:
    """Both models' loss, parameters, and costs of decoding."""
    dense = source.model.eval()
    factored = copy.deepcopy(dense)
    changed = factorize(factored, share)
    models = {"dense": dense, "factored": factored.eval()}
    found: dict[str, Any] = {"matrices": changed, "models": {}}
    costs = _decode_in_turns(models, source, rounds, account)
    device, pad = device_of(source.recipe), source.tokenizer.pad_token_id
    for name, model in models.items():
        loss = losses_of(model, source.data.validation, device, pad).mean()
        found["models"][name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": None if loss is None else loss.as_dict(),
            "decoding": [_as_dict(one) for one in costs[name]],
        }
    return found


def _as_dict(one: Decoding) -> dict[str, Any]:
    return {
        "batch_size": one.batch_size,
        "seconds_per_token": one.seconds_per_token,
        "joules_per_token": one.joules_per_token,
    }


def _decode_in_turns(
    models: dict[str, Any], source: Source, rounds: int, account: PhaseAccount
) -> dict[str, list[Decoding]]:
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for size in _BATCHES:
            for name, model in models.items():
                found = _decode(model, source, size, account)
                if number:  # the first round finds its kernels
                    seen.setdefault((name, size), []).append(found)
    return {
        name: [_median(size, seen[name, size], is_known=account.is_known) for size in _BATCHES]
        for name in models
    }


def _median(size: int, found: list[tuple[float, float]], *, is_known: bool) -> Decoding:
    seconds, joules = (statistics.median(values) for values in zip(*found, strict=True))
    return Decoding(size, seconds, joules if is_known else None)


@torch.no_grad()
def _decode(model: Any, source: Source, size: int, account: PhaseAccount) -> tuple[float, float]:
    """Seconds and joules per token of one batch."""
    chosen = source.data.train[:size]
    width = min(len(item.ids) for item in chosen)
    ids = torch.tensor([item.ids[:width] for item in chosen], device=model.device)
    account.read()
    before, began_s = account.spent(*PHASES), time.perf_counter()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        min_new_tokens=_TOKENS, max_new_tokens=_TOKENS,
        pad_token_id=source.tokenizer.pad_token_id,
    )  # fmt: skip
    took_s = time.perf_counter() - began_s
    account.read()
    spent = account.spent(*PHASES).minus(before)
    tokens = _TOKENS * len(chosen)
    return took_s / tokens, spent.total_j / tokens
