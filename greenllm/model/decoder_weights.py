"""The weights of a known decoder by role: projections, norms, embedding, head.

Matrices come quantized (8 or 4 bits, through the disk cache) or as float32. Each linear module is
quantized on its own, row by row, so putting modules side by side changes nothing.

The embedding table is looked up, not multiplied: with 4 bits it stays at 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from greenllm.model.files import Weights
from greenllm.model.info import LoadError
from greenllm.model.quantize import Floats, QuantizedMatrix, group_of
from greenllm.model.spec import DecoderSpec
from greenllm.model.weight_cache import QuantizedWeights, cache_file

Matrix = QuantizedMatrix | Floats
WeightBits = Literal[32, 8, 4]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
        self._modules = spec.lora_targets
        self._weights = Weights(folder)
        self._sizes: dict[str, int] = {}
        self._quantized: QuantizedWeights | None = None
        if bits != 32:
            path = cache_file(cache_dir, self._weights.digest(), bits) if cache_dir else None
            self._quantized = QuantizedWeights(path, bits)

    @property
    def has_usual_names(self) -> bool:
        """Whether tensors are named as transformers' causal language models name them."""
        return _EMBEDDING in self._weights

    @property
    def has_head_beside_tied_table(self) -> bool:
        """Whether the config ties the head to the token table, and the file has another head."""
        if not self.spec.tied or _HEAD not in self._weights:
            return False
        return not torch.equal(self._weights[_HEAD], self._weights[_EMBEDDING])

    @property
    def was_cached(self) -> bool:
        """Whether no matrix had to be quantized."""
        return self._quantized is not None and self._quantized.was_cached

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices and vectors read so far, each counted once."""
        return sum(self._sizes.values())

    @property
    def kept_layers(self) -> tuple[str, ...]:
        """Linear modules that stay at 8 bits because no 4-bit group divides their width."""
        if self.bits != 4:
            return ()
        modules = self._modules.items()
        return tuple(name for name, (width, _) in modules if group_of(width) is None)

    @property
    def num_parameters(self) -> int:
        """Parameters that take part, a tied head counted once."""
        spec = self.spec
        per_layer = sum(p.in_features * p.out_features for p in spec.projections)
        per_layer += 2 * spec.hidden_size + (2 * spec.head_dim if spec.has_head_norms else 0)
        biases = sum(
            width
            for module, (_, width) in self._modules.items()
            if f"{module}.bias" in self._weights
        )
        tables = spec.vocab_size * spec.hidden_size * (1 if spec.tied else 2)
        return per_layer * spec.num_layers + biases + tables + spec.hidden_size

    def module(self, layer: int, name: str) -> Matrix:
        """Matrix of one linear module of a layer, [out, in]."""
        path = f"model.layers.{layer}.{name}"
        width, height = self._modules[path]
        return self._matrix(f"{path}.weight", height, width)

    def bias(self, layer: int, names: tuple[tuple[str, int], ...]) -> Floats | None:
        """Biases of modules side by side; None when none has one."""
        paths = [(f"model.layers.{layer}.{name}.bias", width) for name, width in names]
        if not any(path in self._weights for path, _ in paths):
            return None
        parts = [
            self._vector(path) if path in self._weights else np.zeros(width, np.float32)
            for path, width in paths
        ]
        return np.concatenate(parts)

    def norm(self, name: str) -> Floats:
        """Scale of an RMS norm, such as `model.norm`."""
        return self._vector(f"{name}.weight")

    def embedding(self) -> Matrix:
        """The token table [vocabulary, hidden]."""
        spec = self.spec
        return self._matrix(_EMBEDDING, spec.vocab_size, spec.hidden_size, at_least_8=True)

    def head(self) -> Matrix:
        """The output matrix [vocabulary, hidden]; the token table when tied."""
        name = _EMBEDDING if self.spec.tied else _HEAD
        return self._matrix(name, self.spec.vocab_size, self.spec.hidden_size)

    def save_cache(self) -> None:
        """Keep what was quantized for the next start."""
        if self._quantized is not None:
            self._quantized.save()

    def _matrix(self, name: str, rows: int, columns: int, *, at_least_8: bool = False) -> Matrix:
        def read() -> Floats:
            values: Floats = self._weights.matrix(name, rows, columns).numpy()
            return values

        if self._quantized is None:
            self._sizes[name] = rows * columns * self._float_bytes
            return read()
        key, bits = (f"{name}@8", 8) if at_least_8 and self.bits == 4 else (name, self.bits)
        matrix = self._quantized.get(key, read, 4 if bits == 4 else 8)
        if matrix.shape != (rows, columns):
            raise LoadError(f"{name} is {matrix.shape}, config.json says {(rows, columns)}")
        self._sizes[key] = matrix.num_bytes
        return matrix

    def _vector(self, name: str) -> Floats:
        values: Floats = self._weights[name].numpy()
        self._sizes[name] = values.nbytes
        return values
