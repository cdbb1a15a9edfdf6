"""Muon for the matrices of the layers, AdamW for the table and the norms, and their schedule.

Contract: both follow one learning rate that warms up and then falls to a hundredth of its peak.
Not covered: gradient accumulation.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from transformers import LlamaForCausalLM

WARMUP: Final = 0.02
WEIGHT_DECAY: Final = 0.05


class Optimizer:
    """One step and one learning rate for all parameters."""

    def __init__(self, model: LlamaForCausalLM, peak: float, muon: bool = True) -> None:
        self._peak = peak
        self._parameters = list(model.parameters())
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2] if muon else []
        taken = {id(p) for p in matrices}
        others = [p for p in self._parameters if id(p) not in taken]
        groups = [
            {"params": [p for p in others if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=peak, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, loss: torch.Tensor, progress: float) -> None:
        """One update, with the gradient clipped to length 1."""
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        rate = learning_rate(progress, self._peak)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        """What a checkpoint must keep."""
        return [part.state_dict() for part in self._parts]

    def restore(self, state: list[dict[str, object]]) -> None:
        """Go on from a checkpoint."""
        for part, kept in zip(self._parts, state, strict=True):
            part.load_state_dict(kept)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if progress < WARMUP:
        return peak * max(progress, 1e-4) / WARMUP
    done = min(1.0, (progress - WARMUP) / (1 - WARMUP))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
