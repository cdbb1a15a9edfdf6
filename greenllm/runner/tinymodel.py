"""Tiny random models that share a served model's features, for the self-check.

A tiny model has two layers and few numbers, and keeps what changes the graph or its kernels: the
family, head norms, biases, a tied head, rotary angles, sliding windows, the width of a head, and
whether heads share keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from greenllm.model.decoder_weights import DecoderWeights, Matrix, WeightBits
from greenllm.model.quantize import Floats, QuantizedMatrix
from greenllm.model.spec import DecoderSpec, spec_of

CONTEXT = 128
VOCABULARY = 97
_WINDOW = 24
_KEPT = (
    "attention_bias",
    "hidden_act",
    "mlp_bias",
    "model_type",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
)
_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def shrink(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """The config.json of a tiny model with the features of this one."""
    shares_keys = spec.num_kv_heads < spec.num_heads
    return {
        **{name: config[name] for name in _KEPT if name in config},
        **_SIZES,
        "architectures": list(config["architectures"]),
        "max_position_embeddings": max(CONTEXT, spec.context_length),
        "num_key_value_heads": 2 if shares_keys else 4,
        "head_dim": spec.head_dim,
        "sliding_window": _WINDOW if any(spec.windows) else None,
        "max_window_layers": 1,
    }


def write_tiny_model(folder: Path, config: Mapping[str, Any]) -> None:
    """Save a model of random weights."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in spec_of(config).tensors.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = noise * 0.15 if len(shape) > 1 else noise * 0.1 + ("norm" in name)
    _save(folder, config, tensors)


def write_restored(given: Path, folder: Path, bits: WeightBits) -> None:
    """Save the model in `given` with the numbers that its quantized matrices stand for."""
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    spec = spec_of(config)
    weights = DecoderWeights(spec, given, bits=bits, cache_dir=None)
    tensors = {
        name: torch.from_numpy(
            _restored(weights.matrix(name)) if len(shape) > 1 else weights.vector(name)
        )
        for name, shape in spec.tensors.items()
    }
    _save(folder, config, tensors)


def _restored(matrix: Matrix) -> Floats:
    return matrix.restored() if isinstance(matrix, QuantizedMatrix) else matrix


def _save(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
