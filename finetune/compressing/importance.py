"""What of a model matters least, from what it computes on some examples.

    layer    1 - cosine(what goes in, what comes out), mean over tokens: a layer that changes little
    head     |its part of the attention's output|, mean over tokens, times the norm of what reads it
    channel  |the MLP channel|, mean over tokens, times the norm of what reads it

Sources: layers by block influence, Men et al., arXiv:2403.03853; heads and channels by activation
times weight, as Sun et al., arXiv:2306.11695, do for single weights.

Contract: no weight changes. Covered are decoders whose layers are `model.layers`, with
`self_attn.o_proj` and `mlp.down_proj`. Not covered: mixtures of experts; how parts matter together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from greenllm.config import ConfigError


@dataclass(frozen=True, slots=True)
class Importance:
    """Per layer: one figure, one for each query head, one for each MLP channel."""

    layers: Tensor
    heads: tuple[Tensor, ...]
    channels: tuple[Tensor, ...]


def layers_of(model: Any) -> Any:
    """A decoder's layers.

    Raises:
        ConfigError: they are not where Llama's are.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    is_known = isinstance(layers, nn.ModuleList) and all(_has(layers[0], part) for part in parts)
    if not is_known:
        raise ConfigError(
            f"{type(model).__name__} cannot be pruned: its layers are not built like Llama's"
        )
    return layers


def _has(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Linear)
    except AttributeError:
        return False


class _Sums:
    """Running sums over tokens, filled by hooks."""

    def __init__(self, num_layers: int) -> None:
        self.tokens = 0
        self.change = torch.zeros(num_layers, dtype=torch.float64)
        self.heads: list[Tensor | float] = [0.0] * num_layers
        self.channels: list[Tensor | float] = [0.0] * num_layers

    def watch(self, i: int, layer: Any) -> list[Any]:
        """Hooks on one layer."""

        def on_layer(_: Any, given: Any, result: Any) -> None:
            before, after = given[0], result[0] if isinstance(result, tuple) else result
            likeness = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            self.change[i] += (1 - likeness).double().sum().item()
            if i == 0:
                self.tokens += likeness.numel()

        def on_input(sums: list[Tensor | float]) -> Any:
            def note(_: Any, given: Any) -> None:
                sums[i] = sums[i] + given[0].float().abs().flatten(0, -2).sum(0)

            return note

        return [
            layer.register_forward_hook(on_layer),
            layer.self_attn.o_proj.register_forward_pre_hook(on_input(self.heads)),
            layer.mlp.down_proj.register_forward_pre_hook(on_input(self.channels)),
        ]


@torch.no_grad()
def importance_of(model: Any, batches: Iterable[Tensor]) -> Importance:
    """Read the batches (ids without padding) once, and weigh every part."""
    layers = layers_of(model)
    sums = _Sums(len(layers))
    hooks = [hook for i, layer in enumerate(layers) for hook in sums.watch(i, layer)]
    try:
        for ids in batches:
            model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    if not sums.tokens:
        raise ValueError("no tokens to weigh by")
    num_heads = model.config.num_attention_heads
    heads, channels = [], []
    for i, layer in enumerate(layers):
        by_column = _weighed(sums.heads[i], layer.self_attn.o_proj.weight, sums.tokens)
        heads.append(by_column.view(num_heads, -1).sum(1))
        channels.append(_weighed(sums.channels[i], layer.mlp.down_proj.weight, sums.tokens))
    return Importance(sums.change / sums.tokens, tuple(heads), tuple(channels))


def _weighed(total: Tensor | float, weight: Tensor, tokens: int) -> Tensor:
    norms: Tensor = weight.float().norm(dim=0)
    return (torch.as_tensor(total) / tokens * norms).cpu()
