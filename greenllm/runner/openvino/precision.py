"""Number formats of a graph: weights, arithmetic, keys and values, and what the plugin is told.

`auto` arithmetic is bfloat16 for quantized weights where the CPU computes it natively, else
float32. With float32 the plugin quantizes activations to 8 bits in groups of 64 inside quantized
layers (integer kernels); with bfloat16 it restores the weights. Measured equally fast here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from openvino import Type

from greenllm.model.decoder_weights import WeightBits
from greenllm.model.info import LoadError
from greenllm.runner.openvino.machine import computes_bfloat16

KvDtype = Literal["auto", "u8", "bfloat16", "float32"]
_ACTIVATION_GROUP = 64
_TYPES: dict[KvDtype, Type] = {"u8": Type.u8, "bfloat16": Type.bf16, "float32": Type.f32}
_NAMES: dict[Type, KvDtype] = {kind: name for name, kind in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Precision:
    """`bits` of the weights, `arithmetic` and `kv` types."""

    bits: WeightBits
    arithmetic: Type
    kv: Type

    @property
    def floats(self) -> Type:
        """How unquantized matrices are stored."""
        return self.arithmetic

    @property
    def lora_type(self) -> Type:
        """How adapter matrices are stored."""
        return self.arithmetic

    @property
    def dtype_name(self) -> Literal["bfloat16", "float32"]:
        """Arithmetic as torch would call it."""
        return "bfloat16" if self.arithmetic == Type.bf16 else "float32"

    @property
    def kv_name(self) -> KvDtype:
        """Keys and values as `--kv-dtype` calls them."""
        return _NAMES[self.kv]

    def properties(self, threads: int) -> dict[str, Any]:
        """Settings for the CPU plugin: one stream, latency first, no surprises in precision."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.arithmetic.get_type_name(),
            "KV_CACHE_PRECISION": self.kv.get_type_name(),
            # A key's 8-bit form must not depend on its neighbours: blocks are shared and resumed.
            "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _ACTIVATION_GROUP if self.bits != 32 else 0,
        }


def choose_precision(bits: WeightBits, dtype: str, kv_dtype: KvDtype) -> Precision:
    """Resolve `auto` for this CPU.

    Raises:
        LoadError: the combination is not one the plugin computes.
    """
    if dtype == "float16":
        raise LoadError("--dtype float16: the OpenVINO runner has float32 and bfloat16")
    native = computes_bfloat16()
    if dtype == "bfloat16" and not native:
        raise LoadError("--dtype bfloat16: this CPU does not compute bfloat16; use float32")
    fast = dtype == "bfloat16" or (dtype == "auto" and bits != 32 and native)
    arithmetic = Type.bf16 if fast else Type.f32
    if kv_dtype == "auto":
        return Precision(bits, arithmetic, arithmetic)
    kv = _TYPES[kv_dtype]
    if kv not in (Type.u8, arithmetic):
        raise LoadError(
            f"--kv-dtype {kv_dtype} does not go with {Precision(bits, arithmetic, kv).dtype_name}"
            " arithmetic: use u8 or auto, or set --dtype"
        )
    return Precision(bits, arithmetic, kv)
