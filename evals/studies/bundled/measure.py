"""Agreement of early exits, and perplexity, on text that training never shows.

Contract: teacher-forced and in float32: at every scored position the reference is given up to
there, and an exit agrees where its likeliest token is the full model's. Scored are the tokens of
answers, or all tokens of plain text. Not covered: what a model says after its own mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from evals.studies.bundled.network import apply_layer, hidden_states, make_frame, read_logits
from evals.studies.bundled.packing import Batch, make_batch, pack_rows
from evals.studies.bundled.text import Library
from evals.studies.bundled.tokenizer import Encoded, Encoder
from evals.tasks.generated.tasks import held_out_examples, task_names

ROWS: Final = 4
LENGTH: Final = 1024
LayerFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Reading:
    """What a model expects at the scored positions of one batch, per number of layers."""

    logits: Mapping[int, Tensor]
    targets: Tensor

    @property
    def last(self) -> Tensor:
        """What the whole model expects."""
        return self.logits[max(self.logits)]


def packed_batches(items: Sequence[Encoded], pad: int) -> Iterator[Batch]:
    """All items that fit a row, in batches, each item once."""
    rest = sorted((i for i in items if len(i.ids) <= LENGTH), key=lambda i: -len(i.ids))
    while rest:
        packed = pack_rows(rest, ROWS, LENGTH)
        taken = sum(map(len, packed))
        rest = rest[taken:]
        yield make_batch(packed, LENGTH, pad)


def held_out_answers(encoder: Encoder, size: int, seed: int) -> list[Encoded]:
    """Held-out conversations of every task, stories among them."""
    tasks = (held_out_examples(task, size, seed, exact=False) for task in task_names())
    return [encoder.conversation(example) for example in chain.from_iterable(tasks)]


def held_out_text(encoder: Encoder, library: Library, most: int) -> list[Encoded]:
    """Held-out blocks of real text."""
    return [encoder.text(" ".join(block)) for block in library.held_out[:most]]


def read_batch(
    model: LlamaForCausalLM,
    batch: Batch,
    exits: Sequence[int],
    dtype: torch.dtype = torch.float32,
    layer_function: LayerFunction = apply_layer,
) -> Reading:
    """The logits at every position whose token weighs 1."""
    norm, head = model.model.norm.weight, model.lm_head.weight
    scored = batch.weights == 1.0
    with torch.no_grad():
        frame = make_frame(batch, dtype)
        states = hidden_states(model, batch, frame, exits, (), layer_function)
        logits = {n: read_logits(x[scored], norm, head, dtype) for n, x in states.items()}
    return Reading(logits, batch.targets[scored])


def agreement(readings: Sequence[Reading]) -> dict[int, float]:
    """The share of scored positions at which each exit expects what the whole model expects."""
    shares: dict[int, float] = {}
    total = sum(len(reading.targets) for reading in readings)
    for layer in readings[0].logits:
        same = sum(int((r.logits[layer].argmax(-1) == r.last.argmax(-1)).sum()) for r in readings)
        shares[layer] = same / total
    return shares


def follows(readings: Sequence[Reading], others: Sequence[Reading]) -> float:
    """The share of scored positions at which two models expect the same token."""
    pairs = list(zip(readings, others, strict=True))
    same = sum(int((a.last.argmax(-1) == b.last.argmax(-1)).sum()) for a, b in pairs)
    return same / sum(len(a.targets) for a, _ in pairs)


def mean_loss(readings: Sequence[Reading]) -> float:
    """Mean cross entropy of the whole model over all scored positions, in nats per token."""
    total = sum(len(reading.targets) for reading in readings)
    losses = (functional.cross_entropy(r.last, r.targets, reduction="sum") for r in readings)
    return float(sum(losses)) / total


def text_quality(readings: Sequence[Reading], size_bytes: int) -> dict[str, float]:
    """Perplexity per token and, of text of a known size, bits per byte.

    Bits per byte do not depend on the tokenizer, so only they compare across models.
    """
    tokens = sum(len(reading.targets) for reading in readings)
    loss = mean_loss(readings)
    found = {"tokens": tokens, "perplexity": round(math.exp(loss), 3)}
    if size_bytes:
        found["bits_per_byte"] = round(loss * tokens / math.log(2) / size_bytes, 3)
    return found
