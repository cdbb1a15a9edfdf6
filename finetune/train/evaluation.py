"""How good a model is on examples it was not trained on, before and after.

Loss is nats per learnt token, with a bootstrap interval over examples; exact matches are greedy
answers that equal the wanted one, with a Wilson interval; the probe is the loss on plain text that
training did not touch: what it gets worse there has been forgotten.

Not covered: whether an answer that differs is right too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune.bill.phases import PHASES, PhaseAccount, PhaseEnergy
from finetune.bill.quality import Losses, ModelQuality
from finetune.data.encoding import Encoded
from finetune.train.exits import ExitHeads, exits_of
from finetune.train.model import TorchDevice
from finetune.train.setup import RunSetup
from greenllm.intervals import Interval, wilson

_ROWS = 16


@torch.no_grad()
def losses_of(model: Any, items: Sequence[Encoded], device: TorchDevice, pad: int) -> Losses:
    """The loss of each example, in the arithmetic of training."""
    sums = [0.0] * len(items)
    for chosen, ids, weights, mask in batches_of(items, device, pad):
        with device.autocast():
            logits = model(input_ids=ids, attention_mask=mask).logits
        found = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        rows = (found.view(len(chosen), -1) * weights[:, 1:]).sum(1).tolist()
        for i, value in zip(chosen, rows, strict=True):
            sums[i] = value
    return Losses(tuple(sums), tuple(sum(item.learnt[1:]) for item in items))


def batches_of(
    items: Sequence[Encoded], device: TorchDevice, pad: int
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
        yield chosen, ids.to(device.name), weights.to(device.name), mask.to(device.name)


@torch.no_grad()
def answer_all(
    model: Any, items: Sequence[Encoded], device: TorchDevice, tokenizer: Any
) -> tuple[Interval | None, int, int]:
    """Answer the last turn of each example that has a whole one to learn, and compare.

    Returns the share of exact matches, and the decoding steps of the answers and of the
    wanted ones.
    """
    asked = [item for item in items if item.prompt_ids]
    asked.sort(key=lambda item: len(item.prompt_ids))
    hits = steps = wanted_steps = 0
    for start in range(0, len(asked), _ROWS):
        chosen = asked[start : start + _ROWS]
        longest = max(len(item.ids) - len(item.prompt_ids) for item in chosen)
        answers, taken = _answers(model, chosen, device, tokenizer, longest)
        steps, wanted_steps = steps + taken, wanted_steps + longest
        hits += sum(
            answer.strip() == item.example.answer.strip()
            for answer, item in zip(answers, chosen, strict=True)
        )
    return wilson(hits, len(asked)), steps, wanted_steps


def _answers(
    model: Any, items: Sequence[Encoded], device: TorchDevice, tokenizer: Any, longest: int
) -> tuple[list[str], int]:
    """Greedy answers, a little longer than the longest wanted one at most, and their steps."""
    width = max(len(item.prompt_ids) for item in items)
    ids = torch.full((len(items), width), tokenizer.pad_token_id)
    mask = torch.zeros(len(items), width, dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, width - len(item.prompt_ids) :] = torch.tensor(item.prompt_ids)
        mask[row, width - len(item.prompt_ids) :] = 1
    with device.autocast():
        found = model.generate(
            input_ids=ids.to(device.name),
            attention_mask=mask.to(device.name),
            max_new_tokens=longest + 4,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    texts: list[str] = tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    return texts, found.shape[1] - width


def _preferred(better: Losses, worse: Losses) -> Interval | None:
    """How often the better answer, as a whole, is the likelier one."""
    if not worse.sums:
        return None
    hits = sum(one < other for one, other in zip(better.sums, worse.sums, strict=True))
    return wilson(hits, len(worse.sums))


@torch.no_grad()
def agreements(
    model: Any, exits: ExitHeads, items: Sequence[Encoded], device: TorchDevice, pad: int
) -> dict[int, Interval | None]:
    """Shares of learnt tokens that an exit would have chosen as the whole model does."""
    hits = dict.fromkeys(exits.layers, 0)
    size = 0
    for _, ids, weights, mask in batches_of(items, device, pad):
        with device.autocast():
            out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            said = {e: exits.logits(out.hidden_states, e).argmax(-1) for e in exits.layers}
        counts = weights[:, 1:] > 0
        wanted = out.logits.argmax(-1)
        size += int(counts.sum())
        for layer, found in said.items():
            hits[layer] += int(((found == wanted)[:, :-1] & counts).sum())
    return {layer: wilson(count, size) for layer, count in hits.items()}


def evaluate(setup: RunSetup, model: Any, account: PhaseAccount) -> ModelQuality | None:
    """Everything about a model at one moment; its mode is left as it was.

    None in all processes but the main one, which wait.
    """
    found = None
    if setup.processes.is_main:
        was_training = model.training
        model.eval()
        try:
            found = _evaluate(setup, model, account)
        finally:
            model.train(was_training)
    setup.processes.wait()
    return found


def _evaluate(setup: RunSetup, model: Any, account: PhaseAccount) -> ModelQuality:
    recipe, device, items = setup.recipe, setup.device, setup.data.validation
    pad = setup.tokenizer.pad_token_id
    began = _spent(account)
    losses = losses_of(model, items, device, pad)
    scored = _spent(account)
    matches, steps, wanted_steps = answer_all(
        model, items[: recipe.answers], device, setup.tokenizer
    )
    asked = _spent(account)
    worse = [item.rejected for item in items if item.rejected is not None]
    exits: dict[int, Interval | None] = {}
    if recipe.objective == "layerskip":
        exits = agreements(model, exits_of(recipe, model), items, device, pad)
    return ModelQuality(
        losses,
        losses_of(model, setup.probe, device, pad),
        matches,
        exits=exits,
        preferred=_preferred(losses, losses_of(model, worse, device, pad)),
        answer_steps=steps,
        wanted_steps=wanted_steps,
        answers_j=asked.minus(scored).total_j if account.is_known else None,
        losses_j=scored.minus(began).total_j if account.is_known else None,
        cost=_spent(account).minus(began),
    )


def _spent(account: PhaseAccount) -> PhaseEnergy:
    account.read()
    return account.spent(*PHASES)
