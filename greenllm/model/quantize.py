"""Round-to-nearest weight quantization, in numpy: 8 bits per row, 4 bits per group of a row.

Both are symmetric: value = scale * integer. The 4-bit scale of each group is the one, among a few
candidates, with the least squared error; the integers are in [-8, 7]. Groups have 64 columns:
groups of 32 lose less, and cost a fifth of the speed of a single sequence. A matrix whose width is
no multiple of 32 stays at 8 bits.

Not covered: calibration with data (GPTQ, AWQ), bitsandbytes' nf4 (see `loader`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bits = Literal[8, 4]

GROUPS = (64, 32)
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
_TINY = np.float32(1e-12)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """`integers * scales` [out, in].

    8 bits: `integers` int8 [out, in], `scales` [out, 1]. 4 bits: `integers` uint8
    [out, groups, group / 2], two to a byte, the even one low, two's complement; `scales`
    [out, groups, 1].
    """

    bits: Bits
    shape: tuple[int, int]
    integers: NDArray[np.int8] | NDArray[np.uint8]
    scales: Floats

    @property
    def num_bytes(self) -> int:
        """Bytes of integers and scales."""
        return self.integers.nbytes + self.scales.nbytes

    def restored(self) -> Floats:
        """The float32 matrix that these integers stand for."""
        if self.bits == 8:
            return self.integers.astype(np.float32) * self.scales
        packed = self.integers.astype(np.uint8)
        low, high = packed & 15, packed >> 4
        nibbles = np.stack([low, high], axis=-1).reshape(*packed.shape[:2], -1).astype(np.int16)
        signed = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.float32)
        restored: Floats = (signed * self.scales).reshape(self.shape)
        return restored


def group_of(width: int) -> int | None:
    """Group size for 4 bits; None when none divides the width."""
    return next((group for group in GROUPS if width % group == 0), None)


def recipe(bits: Bits) -> str:
    """All that the quantized form depends on beside the weights, for cache keys."""
    return "8" if bits == 8 else f"4, groups {GROUPS}, shrinks {_SHRINKS}"


def stacked(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Rows below rows."""
    first = matrices[0]
    return QuantizedMatrix(
        first.bits,
        (sum(matrix.shape[0] for matrix in matrices), first.shape[1]),
        np.concatenate([matrix.integers for matrix in matrices]),
        np.concatenate([matrix.scales for matrix in matrices]),
    )


def quantize_parts(parts: Iterable[Floats], bits: Bits) -> QuantizedMatrix:
    """Quantize a matrix that comes some rows at a time; the parts change nothing."""
    return stacked([quantize(part, bits) for part in parts])


def quantize(matrix: Floats, bits: Bits) -> QuantizedMatrix:
    """Quantize a matrix [out, in]; 4 bits fall back to 8 where no group fits."""
    group = group_of(matrix.shape[1]) if bits == 4 else None
    return _to_int4(matrix, group) if group else _to_int8(matrix)


def _to_int8(matrix: Floats) -> QuantizedMatrix:
    scales = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / 127, _TINY)
    integers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
    return QuantizedMatrix(8, matrix.shape, integers, scales)


def _to_int4(matrix: Floats, group: int) -> QuantizedMatrix:
    rows, width = matrix.shape
    grouped = matrix.reshape(rows, width // group, group)
    scales = _best_scales(grouped)
    integers = np.clip(np.rint(grouped / scales), -8, 7).astype(np.int8)
    nibbles = integers.astype(np.uint8) & 15
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return QuantizedMatrix(4, (rows, width), packed, scales)


def _best_scales(grouped: Floats) -> Floats:
    """Per group: the scale with the least squared error; -8 serves the largest value's sign."""
    place = np.abs(grouped).argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(grouped, place, axis=-1)
    full = np.where(np.abs(largest) < _TINY, _TINY, largest / -8)
    best = full.astype(np.float32)
    least = np.full(best.shape, np.inf, dtype=np.float32)
    for shrink in _SHRINKS:
        scale = (full * shrink).astype(np.float32)
        rounded = np.clip(np.rint(grouped / scale), -8, 7)
        error = np.square(rounded * scale - grouped).sum(axis=-1, keepdims=True)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best
