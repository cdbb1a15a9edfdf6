"""Leaves out the layers, heads and MLP channels that matter least.

Contract: what is kept keeps its order and its weights; every layer keeps the same number of heads
and channels, and every key-value head the same number of query heads, so that the result is a
normal checkpoint. What config.json says of trained exits no longer holds and is left out.

Not covered: hidden width, vocabulary, key-value heads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import prune_linear_layer

from finetune.compressing.importance import Importance, layers_of
from greenllm.config import ConfigError

_EXIT_KEYS = ("greenllm_exit_layers", "greenllm_exit_thresholds")


def prune(
    model: Any,
    found: Importance,
    *,
    layers: int | None = None,
    heads: int | None = None,
    mlp_width: int | None = None,
) -> None:
    """Cut the model in place.

    Raises:
        ConfigError: there are not so many, or they cannot be shared out evenly.
    """
    config = model.config
    _require("layers", layers, len(layers_of(model)))
    _require("heads", heads, config.num_attention_heads)
    _require("mlp_width", mlp_width, config.intermediate_size)
    if mlp_width is not None:
        for layer, scores in zip(layers_of(model), found.channels, strict=True):
            _cut(layer.mlp, ("gate_proj", "up_proj"), "down_proj", kept(scores, mlp_width))
        config.intermediate_size = mlp_width
    if heads is not None:
        _cut_heads(model, found, heads)
    if layers is not None:
        _cut_layers(model, kept(found.layers, layers).tolist())
    forget_exits(config)


def forget_exits(config: Any) -> None:
    """Leave out what config.json says of exits of another model."""
    for key in _EXIT_KEYS:
        if hasattr(config, key):
            delattr(config, key)


def _require(name: str, wanted: int | None, there: int) -> None:
    if wanted is not None and wanted > there:
        raise ConfigError(f"--{name.replace('_', '-')} {wanted}: the model has {there}")


def kept(scores: Tensor, count: int) -> Tensor:
    """Places of the largest, in their order."""
    return torch.topk(scores, count).indices.sort().values


def _cut_layers(model: Any, places: list[int]) -> None:
    layers, config = layers_of(model), model.config
    model.model.layers = nn.ModuleList([layers[place] for place in places])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    config.num_hidden_layers = len(places)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in places]


def _cut_heads(model: Any, found: Importance, heads: int) -> None:
    config = model.config
    num_heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ConfigError(f"--heads {heads} must be a multiple of the {groups} key-value heads")
    size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    _require_savable(model, heads, size)
    for layer, scores in zip(layers_of(model), found.heads, strict=True):
        of_group = scores.view(groups, num_heads // groups)
        best = torch.stack([kept(row, heads // groups) for row in of_group])
        offsets = torch.arange(groups)[:, None] * (num_heads // groups)
        rows = ((best + offsets).flatten()[:, None] * size + torch.arange(size)).flatten()
        _cut(layer.self_attn, ("q_proj",), "o_proj", rows)
        layer.self_attn.num_key_value_groups = heads // groups
    config.num_attention_heads, config.head_dim = heads, size


def _require_savable(model: Any, heads: int, size: int) -> None:
    """Some kinds of models allow certain numbers of heads only, and norms over all of them."""
    norm = getattr(layers_of(model)[0].self_attn, "q_norm", None)
    if norm is not None and norm.weight.numel() != size:
        raise ConfigError(f"--heads: {type(model).__name__} has a norm over all heads together")
    require_valid(model.config, {"num_attention_heads": heads, "head_dim": size})


def require_valid(config: Any, changes: Mapping[str, Any]) -> None:
    """Refuse a configuration that transformers would not write.

    Raises:
        ConfigError: with its reason.
    """
    draft = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(draft, name, value)
    try:
        draft.validate()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"these sizes do not go together: {reason[:300]}") from error


def _cut(module: Any, writers: Sequence[str], reader: str, places: Tensor) -> None:
    """Keep these outputs of some matrices, and of the one that reads them these inputs."""
    for name in writers:
        setattr(module, name, prune_linear_layer(getattr(module, name), places))
    setattr(module, reader, prune_linear_layer(getattr(module, reader), places, dim=1))
