"""The early-exit loss: hidden states of chosen layers are read by the same norm and head.

Contract: after LayerSkip (arXiv:2404.16710), later exits weigh more and deeper layers are skipped
more often, per batch. Unlike there, an exit also learns from the whole distribution of the last
layer, and only two exits are read per step, so that exits cost little. Not covered: exits of
layers not listed in `exit_layers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from evals.studies.bundled.network import apply_layer as plain_layer
from evals.studies.bundled.network import compiled, hidden_states, make_frame, read_logits
from evals.studies.bundled.packing import Batch


def exit_layers(layers: int) -> tuple[int, ...]:
    """Where exits are trained: at a third and a half of the depth, and around them."""
    wanted = {layers // 6, layers // 4, layers // 3, layers // 2, 2 * layers // 3, 3 * layers // 4}
    return tuple(sorted(wanted - {0, layers}))


def exits_of_step(step: int, layers: int) -> tuple[int, ...]:
    """The two main exits on even steps, one main and one other on odd steps."""
    main = (layers // 3, layers // 2)
    others = [layer for layer in exit_layers(layers) if layer not in main]
    if step % 2 == 0 or not others:
        return main
    turn = step // 2
    return tuple(sorted((main[turn % 2], others[turn % len(others)])))


def skipped_layers(rng: random.Random, layers: int, most: float) -> frozenset[int]:
    """Layers to leave out of one step; the chance grows with depth from 0 to `most`."""
    chances = (most * (math.exp(i * math.log(2) / (layers - 1)) - 1) for i in range(layers))
    return frozenset(index for index, chance in enumerate(chances) if rng.random() < chance)


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over tokens."""
    return (losses * weights).sum() / weights.sum()


def token_loss(
    x: Tensor, norm: Tensor, head: Tensor, targets: Tensor, weights: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy with the next token, and the logits; `like` carries the dtype."""
    logits = read_logits(x, norm, head, like.dtype)
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return _weighted(losses, weights.flatten()), logits


def exit_loss(
    x: Tensor,
    norm: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    like: Tensor,
    teacher: Tensor,
) -> Tensor:
    """Half cross entropy with the next token, half with what the teacher expects."""
    logs = torch.log_softmax(read_logits(x, norm, head, like.dtype), -1)
    hard = -logs.gather(-1, targets[..., None])[..., 0]
    soft = -(torch.softmax(teacher, -1) * logs).sum(-1)
    return _weighted(0.5 * (hard + soft), weights)  # fmt: skip


@dataclass(frozen=True)
class Functions:
    """The three heavy functions, fused where that is possible."""

    layer: Callable[..., Tensor]
    token_loss: Callable[..., tuple[Tensor, Tensor]]
    exit_loss: Callable[..., Tensor]


PLAIN = Functions(plain_layer, token_loss, exit_loss)


def fused() -> Functions:
    """The functions with their element-wise work fused."""
    return Functions(compiled(plain_layer), compiled(token_loss), compiled(exit_loss))


@dataclass(frozen=True)
class Plan:
    """What one step computes beside the last layer's loss."""

    exits: tuple[int, ...]
    skipped: frozenset[int]


def step_losses(
    model: LlamaForCausalLM,
    batch: Batch,
    plan: Plan,
    functions: Functions = PLAIN,
    dtype: torch.dtype = torch.bfloat16,
) -> Mapping[int, Tensor]:
    """The loss of the last layer and of each planned exit, by number of layers."""
    frame = make_frame(batch, dtype)
    states = hidden_states(model, batch, frame, plan.exits, plan.skipped, functions.layer)
    norm, head = model.model.norm.weight, model.lm_head.weight
    shared = (norm, head, batch.targets, batch.weights, frame.mask)
    last = len(model.model.layers)
    loss, logits = functions.token_loss(states[last], *shared)
    teacher = logits.detach()
    early = {e: functions.exit_loss(states[e], *shared, teacher) for e in plan.exits}
    return {last: loss} | early


def total_loss(losses: Mapping[int, Tensor], scale: float) -> Tensor:
    """The last layer's loss plus the scaled exits, each weighted by its share of the depth."""
    last = max(losses)
    early = [losses[e] * (scale * e / last) for e in losses if e != last]
    return torch.stack([losses[last], *early]).sum()
