"""How good a model is on examples it was not trained on, before and after.

Loss is nats per learnt token, with a bootstrap interval over examples; exact matches are greedy
answers that equal the wanted one, with a Wilson interval; the probe is the loss on plain text that
training did not touch: what it gets worse there has been forgotten.

Not covered: whether an answer that differs is right too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.bill.quality import Losses, Quality
from finetune.data.encoding import Encoded
from finetune.train.model import Place
from greenllm.intervals import Estimate, wilson

_ROWS = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """Exact matches, and the decoding steps of the answers and of the wanted ones."""

    matches: Estimate | None
    steps: int
    wanted_steps: int


@torch.no_grad()
def losses_of(model: Any, items: Sequence[Encoded], place: Place, pad: int) -> Losses:
    """The loss of each example, in the arithmetic of training."""
    sums = [0.0] * len(items)
    for chosen, ids, weights, mask in batches_of(items, place, pad):
        with torch.autocast(place.device.split(":")[0], torch.bfloat16, enabled=place.is_half):
            logits = model(input_ids=ids, attention_mask=mask).logits
        found = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        rows = (found.view(len(chosen), -1) * weights[:, 1:]).sum(1).tolist()
        for i, value in zip(chosen, rows, strict=True):
            sums[i] = value
    return Losses(tuple(sums), tuple(sum(item.learnt[1:]) for item in items))


def batches_of(
    items: Sequence[Encoded], place: Place, pad: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Places, ids, weights and masks of examples of like lengths."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        width = len(items[chosen[-1]].ids)
        ids = torch.full((len(chosen), width), pad)
        weights = torch.zeros(len(chosen), width)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            size = len(items[i].ids)
            ids[row, :size] = torch.tensor(items[i].ids)
            weights[row, :size] = torch.tensor(items[i].learnt, dtype=torch.float32)
            mask[row, :size] = 1
        yield chosen, ids.to(place.device), weights.to(place.device), mask.to(place.device)


@torch.no_grad()
def answer_all(model: Any, items: Sequence[Encoded], place: Place, tokenizer: Any) -> Answered:
    """Answer the last turn of each example that has a whole one to learn, and compare."""
    asked = [item for item in items if item.prompt_ids]
    asked.sort(key=lambda item: len(item.prompt_ids))
    hits = steps = wanted_steps = 0
    for start in range(0, len(asked), _ROWS):
        chosen = asked[start : start + _ROWS]
        longest = max(len(item.ids) - len(item.prompt_ids) for item in chosen)
        answers, taken = _answers(model, chosen, place, tokenizer, longest)
        steps, wanted_steps = steps + taken, wanted_steps + longest
        hits += sum(
            answer.strip() == item.example.answer.strip()
            for answer, item in zip(answers, chosen, strict=True)
        )
    return Answered(wilson(hits, len(asked)), steps, wanted_steps)


def _answers(
    model: Any, items: Sequence[Encoded], place: Place, tokenizer: Any, longest: int
) -> tuple[list[str], int]:
    """Greedy answers, a little longer than the longest wanted one at most, and their steps."""
    width = max(len(item.prompt_ids) for item in items)
    ids = torch.full((len(items), width), tokenizer.pad_token_id)
    mask = torch.zeros(len(items), width, dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, width - len(item.prompt_ids) :] = torch.tensor(item.prompt_ids)
        mask[row, width - len(item.prompt_ids) :] = 1
    with torch.autocast(place.device.split(":")[0], torch.bfloat16, enabled=place.is_half):
        found = model.generate(
            input_ids=ids.to(place.device),
            attention_mask=mask.to(place.device),
            max_new_tokens=longest + 4,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    texts: list[str] = tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    return texts, found.shape[1] - width


def worse_of(items: Sequence[Encoded]) -> list[Encoded]:
    """The worse answers, where examples are preferences."""
    return [item.rejected for item in items if item.rejected is not None]


def _preferred(better: Losses, worse: Losses) -> Estimate | None:
    """How often the better answer, as a whole, is the likelier one."""
    if not worse.sums:
        return None
    hits = sum(one < other for one, other in zip(better.sums, worse.sums, strict=True))
    return wilson(hits, len(worse.sums))


def look(
    model: Any,
    items: Sequence[Encoded],
    probe: Sequence[Encoded],
    place: Place,
    tokenizer: Any,
    num_answers: int,
    spent_j: Callable[[], float | None],
) -> Quality:
    """Everything about a model at one moment; its mode is left as it was."""
    was_training = model.training
    model.eval()
    try:
        pad, start_j = tokenizer.pad_token_id, spent_j()
        losses = losses_of(model, items, place, pad)
        before_j = spent_j()
        answered = answer_all(model, items[:num_answers], place, tokenizer)
        after_j = spent_j()
        return Quality(
            losses,
            losses_of(model, probe, place, pad),
            answered.matches,
            answer_steps=answered.steps,
            wanted_steps=answered.wanted_steps,
            answers_j=None if before_j is None or after_j is None else after_j - before_j,
            losses_j=None if start_j is None or before_j is None else before_j - start_j,
            preferred=_preferred(losses, losses_of(model, worse_of(items), place, pad)),
        )
    finally:
        model.train(was_training)
