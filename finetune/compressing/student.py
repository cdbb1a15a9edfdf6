"""A fresh model of the same kind with smaller sizes, to learn from the one it is made after.

Contract: the vocabulary, the context and the head size stay; weights are random, drawn from the
seed. Not covered: other kinds of models.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from finetune.compressing.prune import forget_exits, require_valid
from greenllm.config import ConfigError


def student_of(
    model: Any,
    seed: int,
    *,
    layers: int | None = None,
    heads: int | None = None,
    mlp_width: int | None = None,
    hidden_size: int | None = None,
) -> Any:
    """The student.

    Raises:
        ConfigError: the sizes do not go together.
    """
    config = copy.deepcopy(model.config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp_width,
        "hidden_size": hidden_size,
    }
    for name, value in sizes.items():
        if value is not None:
            setattr(config, name, value)
    config.head_dim = size
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"--heads {config.num_attention_heads} must be a multiple of the"
            f" {config.num_key_value_heads} key-value heads"
        )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    forget_exits(config)
    require_valid(config, {})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
