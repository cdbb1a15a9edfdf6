"""Quantization by vLLM while it loads: what it takes, what it is told, and whether it did it.

Contract: what cannot be is a `LoadError` that names what to install or to change. vLLM may take a
method and quantize nothing, without a word; `survey` looks at the layers themselves.

Not covered: calibrated quantization (checkpoints bring that), mixtures of experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from greenllm.model.info import LoadError
from greenllm.model.options import Dtype
from greenllm.model.quiet import hush_bitsandbytes
from greenllm.options import EngineConfig

_PACKAGES = {"nf4": ("vllm_bnb_plugin", "vllm-bnb-plugin"), "int8": ("torchao", "torchao")}


def dtype_for(config: EngineConfig) -> Dtype:
    """The dtype to load in: bitsandbytes' kernel for CPUs computes in bfloat16 only."""
    return "bfloat16" if config.quantize == "nf4" and config.dtype == "auto" else config.dtype


def check_quantization(config: EngineConfig, device: str) -> None:
    """Refuse what vLLM cannot quantize to on this device, or here.

    Raises:
        LoadError: with the reason.
    """
    kind, asked = config.quantize, f"--quantize {config.quantize} with --engine vllm"
    if kind == "int4":
        raise LoadError(f"{asked}: that is the openvino runner's; vLLM has int8, nf4 and fp8")
    if kind == "fp8" and device == "cpu":
        raise LoadError(f"{asked}: vLLM has no such kernel for CPUs; int8 works there")
    if kind == "nf4" and device == "cpu" and dtype_for(config) != "bfloat16":
        raise LoadError(f"{asked}: on CPUs it computes in bfloat16 only; leave --dtype out")
    if kind == "nf4" and config.speculative == "draft_model":
        raise LoadError(f"{asked}: it does not go with a draft model; --quantize int8 does")
    module, package = _PACKAGES.get(kind, (None, ""))
    if module is not None and find_spec(module) is None:
        raise LoadError(
            f"{asked}: pip install --no-deps {package}, into vLLM's environment; or --engine native"
        )


def quantization_values(kind: str) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`."""
    if kind == "nf4":
        hush_bitsandbytes()
        return {"quantization": "bitsandbytes"}
    if kind == "int8":
        from torchao.core.config import config_to_dict
        from torchao.quantization import Int8WeightOnlyConfig

        recipe = json.dumps(config_to_dict(Int8WeightOnlyConfig()))
        overrides = {"quantization_config_dict_json": recipe}
        return {"quantization": "torchao", "hf_overrides": overrides}
    return {"quantization": kind} if kind == "fp8" else {}


@dataclass(frozen=True, slots=True)
class Survey:
    """What vLLM holds: bytes of weights, and its linear layers, quantized or left as they were."""

    num_bytes: int
    num_quantized: int
    kept: tuple[str, ...]

    def require_quantized(self, what: str) -> None:
        """Refuse a model that was to be quantized and is not.

        Raises:
            LoadError: no linear layer is.
        """
        if not self.num_quantized:
            raise LoadError(f"vLLM has quantized no layer of {what}, though it did not say so")


def survey(model: Any) -> Survey:
    """Look at the loaded model."""
    tensors = {id(tensor): tensor for tensor in model.parameters()}
    num_bytes = sum(_bytes(tensor) for tensor in tensors.values())
    num_quantized, kept = 0, []
    for name, layer in _linear_layers(model):
        quantized = type(layer.quant_method).__name__ != "UnquantizedLinearMethod"
        num_bytes += _packed_bytes(layer, quantized=quantized)
        num_quantized += quantized
        kept += [] if quantized else [name]
    return Survey(num_bytes, num_quantized, tuple(kept))


def together(parts: Sequence[Survey]) -> Survey:
    """Of a model that is spread over devices: each has a part of every layer."""
    first = parts[0]
    return Survey(sum(part.num_bytes for part in parts), first.num_quantized, first.kept)


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers themselves, without what wraps them for adapters."""
    for name, module in model.named_modules():
        if hasattr(module, "output_size_per_partition") and not hasattr(module, "base_layer"):
            yield name.removesuffix(".base_layer"), module


def _packed_bytes(layer: Any, *, quantized: bool) -> int:
    """Of a weight that a CPU kernel has taken over, leaving an empty one or none in its place."""
    weight: Any = getattr(layer, "weight", layer)
    if weight is layer or (weight is not None and weight.numel()):
        return 0
    size = int(layer.input_size_per_partition) * int(layer.output_size_per_partition)
    return size if quantized or weight is None else size * int(weight.element_size())


def _bytes(tensor: Any) -> int:
    """With the constants that a quantized tensor keeps beside its numbers, or in its place."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    size = int(tensor.numel() * tensor.element_size())
    states = getattr(tensor, "bnb_quant_state", None) or {}
    return size + sum(_constants(state) for state in states.values())


def _constants(state: Any) -> int:
    size = sum(int(one.numel() * one.element_size()) for one in (state.absmax, state.code))
    inner = getattr(state, "state2", None)
    return size if inner is None else size + _constants(inner)
