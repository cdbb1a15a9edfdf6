"""The weights of a known decoder by role: projections, norms, embedding, head.

Matrices come quantized (8 or 4 bits, through the disk cache) or as float32. Each linear module is
quantized on its own, row by row, so putting modules side by side changes nothing.

What config.json calls for decides: a tensor that is absent or has another shape is a `LoadError`,
one that is not called for is ignored, as transformers ignores it, and told by `unexpected`.

With 4 bits the token table and the head stay at 8: a tied one is then stored once, and every logit
passes through the head.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from greenllm.model.files import Weights
from greenllm.model.quantize import Bits, Floats, QuantizedMatrix, group_of
from greenllm.model.spec import EMBEDDING, HEAD, DecoderSpec
from greenllm.model.weight_cache import QuantizedWeights, Wanted, cache_file

Matrix = QuantizedMatrix | Floats
WeightBits = Literal[32, 8, 4]

# Angles that old checkpoints carry along; they follow from the config.
_DERIVED = ".rotary_emb.inv_freq"


class DecoderWeights:
    """Reads one checkpoint; `bits` 32 keeps floating point, `float_bytes` to a number."""

    def __init__(
        self,
        spec: DecoderSpec,
        folder: Path,
        *,
        bits: WeightBits,
        cache_dir: Path | None,
        float_bytes: int = 4,
    ) -> None:
        self.spec = spec
        self.bits = bits
        self._float_bytes = float_bytes
        self._tensors = spec.tensors
        self._weights = Weights(folder)
        self._wanted: dict[str, Wanted] = {}
        self._quantized: QuantizedWeights | None = None
        if bits != 32:
            self._wanted = _wanted(spec, bits)
            path = cache_file(cache_dir, self._weights.digest(), bits) if cache_dir else None
            self._quantized = QuantizedWeights(path, self._wanted, self._matrix_of)

    @property
    def has_usual_names(self) -> bool:
        """Whether tensors are named as transformers' causal language models name them."""
        return EMBEDDING in self._weights

    @property
    def has_head_beside_tied_table(self) -> bool:
        """Whether the config ties the head to the token table, and the file has another head."""
        if not self.spec.tied or HEAD not in self._weights:
            return False
        shape = self._tensors[EMBEDDING]
        head, table = self._weights.get(HEAD, shape), self._weights.get(EMBEDDING, shape)
        return head.dtype != table.dtype or not torch.equal(head, table)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Tensors of the checkpoint that config.json does not call for."""
        expected = self._tensors.keys() | ({HEAD} if self.spec.tied else set())
        extra = self._weights.names - expected
        return tuple(sorted(name for name in extra if not name.endswith(_DERIVED)))

    @property
    def was_cached(self) -> bool:
        """Whether quantized matrices were read, and came from the disk."""
        return self._quantized is not None and self._quantized.was_cached

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices and vectors, each counted once."""
        vectors = [shape for shape in self._tensors.values() if len(shape) == 1]
        size = 4 * sum(math.prod(shape) for shape in vectors)
        if self._quantized is not None:
            return size + sum(matrix.num_bytes for matrix in self._wanted.values())
        matrices = [shape for shape in self._tensors.values() if len(shape) == 2]
        return size + self._float_bytes * sum(math.prod(shape) for shape in matrices)

    @property
    def kept_layers(self) -> tuple[str, ...]:
        """Linear modules that stay at 8 bits because no 4-bit group divides their width."""
        if self.bits != 4:
            return ()
        modules = self.spec.lora_targets.items()
        return tuple(name for name, (width, _) in modules if group_of(width) is None)

    @property
    def num_parameters(self) -> int:
        """Parameters that take part, a tied head counted once."""
        return sum(math.prod(shape) for shape in self._tensors.values())

    def module(self, layer: int, name: str) -> Matrix:
        """Matrix of one linear module of a layer, [out, in]."""
        return self.matrix(f"model.layers.{layer}.{name}.weight")

    def bias(self, layer: int, names: tuple[tuple[str, int], ...]) -> Floats | None:
        """Biases of modules side by side; None when the model has none there."""
        paths = [f"model.layers.{layer}.{name}.bias" for name, _ in names]
        if not any(path in self._tensors for path in paths):
            return None
        return np.concatenate([self.vector(path) for path in paths])

    def norm(self, name: str) -> Floats:
        """Scale of an RMS norm, such as `model.norm`."""
        return self.vector(f"{name}.weight")

    def embedding(self) -> Matrix:
        """The token table [vocabulary, hidden]."""
        return self.matrix(EMBEDDING)

    def head(self) -> Matrix:
        """The output matrix [vocabulary, hidden]; the token table when tied."""
        return self.matrix(EMBEDDING if self.spec.tied else HEAD)

    def matrix(self, name: str) -> Matrix:
        """A matrix by the name of its tensor, as graphs see it."""
        return self.vector(name) if self._quantized is None else self._quantized[name]

    def vector(self, name: str) -> Floats:
        """A bias or a norm's scale by the name of its tensor."""
        values: Floats = self._weights.get(name, self._tensors[name]).float().numpy()
        return values

    def _matrix_of(self, wanted: Wanted) -> Tensor:
        return self._weights.get(wanted.tensor, wanted.shape)


def _wanted(spec: DecoderSpec, bits: Bits) -> dict[str, Wanted]:
    """The matrices that graphs ask for, modules that lie side by side next to each other."""
    return {
        name: Wanted(name, (shape[0], shape[1]), 8 if name in (EMBEDDING, HEAD) else bits)
        for name, shape in spec.tensors.items()
        if len(shape) == 2
    }
