"""A LoRA adapter's weights, read from PEFT's layout into what every runner adds.

    y += (x @ A^T) @ B^T        with the scaling folded into B

Contract: what `read_lora` returns is complete, fits the modules it names, and is finite in every
type that runners compute with, the scaling included; anything else is an `AdapterError`. So what
can be served does not depend on the runner. Pickle is never read. Nothing depends on where the
weight of the base is stored transposed (`fan_in_fan_out`, GPT-2): A and B are the same there.

Not covered, and refused: DoRA, biases, embeddings and heads, modules saved in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from greenllm.given_files import MOST_SETTINGS_BYTES, read_bytes
from greenllm.model.lora_config import CONFIG_NAME, AdapterError, LoraConfig, read_config
from greenllm.model.lora_layout import Pair, Targets, inspect_lora, pair_up, weights_file

# float16 has the least range of the types that runners compute with.
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """An adapter in memory.

    `layers` holds, by path of the module in the transformers model, A float32
    [rank, in_features] and B float32 [out_features, rank]. Ranks may differ between modules; `rank`
    is the largest. `digest` names the content: config and weights.
    """

    digest: str
    rank: int
    num_bytes: int
    num_parameters: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


def read_lora(folder: Path, targets: Targets | None) -> LoraWeights:
    """Read an adapter for a base with these modules (path -> in_features, out_features).

    Without `targets` any base will do.

    Raises:
        AdapterError: with what is wrong, where, and what to do.
    """
    config = read_config(folder)
    path = weights_file(folder)
    # Its header first: what does not fit is not read into memory.
    inspect_lora(folder, targets)
    try:
        settings = read_bytes(folder / CONFIG_NAME, MOST_SETTINGS_BYTES)
        data = read_bytes(path, path.stat().st_size)
        tensors = load(data)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise AdapterError(f"cannot read {path}: {error}") from error
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    pairs = pair_up(shapes, config, folder, targets)
    parameters = sum(pair.num_parameters for pair in pairs.values())
    return LoraWeights(
        digest=_digest(settings, data),
        rank=max(pair.rank for pair in pairs.values()),
        num_bytes=4 * parameters,
        num_parameters=parameters,
        layers={name: _layer(name, pair, tensors, config, folder) for name, pair in pairs.items()},
    )


def _digest(settings: bytes, data: bytes) -> str:
    """Hash of the content; the config's length keeps the two apart."""
    state = hashlib.blake2b(len(settings).to_bytes(8, "little"), digest_size=16)
    state.update(settings)
    state.update(data)
    return state.hexdigest()


def _layer(
    name: str, pair: Pair, tensors: Mapping[str, Tensor], config: LoraConfig, folder: Path
) -> tuple[Tensor, Tensor]:
    a, b = _values(pair.a, tensors, folder), _values(pair.b, tensors, folder)
    scale = config.scale_of(name)
    scaled = b * scale
    _check_range(a, f"{folder}: {pair.a}")
    _check_range(scaled, f"{folder}: {pair.b}, scaled by {scale:g},")
    return a, scaled


def _check_range(values: Tensor, what: str) -> None:
    largest = float(values.abs().max())
    if not largest <= _LARGEST:
        raise AdapterError(
            f"{what} holds {largest:.3g}, beyond the range of float16 ({_LARGEST:g}), in which it"
            " may have to run: training diverged, or its lora_alpha is too large"
        )


def _values(key: str, tensors: Mapping[str, Tensor], folder: Path) -> Tensor:
    tensor = tensors[key]
    if not tensor.is_floating_point():
        raise AdapterError(f"{folder}: {key} holds {tensor.dtype}, not floating-point numbers")
    values = tensor.float()
    if not bool(torch.isfinite(values).all()):
        raise AdapterError(f"{folder}: {key} holds numbers that are not finite: training diverged")
    return values
