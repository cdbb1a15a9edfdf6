"""What is known about a loaded model, without its weights. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from greenllm.core import GreenllmError

Quantization = Literal["none", "int8", "int4", "nf4", "fp8"]


class LoadError(GreenllmError):
    """A model cannot be loaded; the message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Identity and size of a model as it sits in memory.

    `weight_bytes` counts parameters, buffers and quantization constants. `kept_layers` names
    linear layers that quantization left alone, because their width does not suit the kernel. Ends
    that are not in the vocabulary, as some configurations name them, are left out.
    """

    name: str
    source: str
    architecture: str
    parameters: int
    weight_bytes: int
    quantization: str
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    kept_layers: tuple[str, ...] = ()
    runner: str = "torch"
    licence: str | None = None
    created_s: int = 0

    def __post_init__(self) -> None:
        known = frozenset(one for one in self.eos_token_ids if 0 <= one < self.vocab_size)
        object.__setattr__(self, "eos_token_ids", known)
