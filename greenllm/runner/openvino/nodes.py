"""The pieces a decoder graph is made of: constants, linear layers, norms, rotation.

Each is written in the form the CPU plugin recognises and fuses: compressed fully-connected layers
(convert, scale, multiply), RMS norms, and half-split rotary embedding on rank-4 tensors, split on
axis 3. Another spelling computes the same, but slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node, Output, Type, opset13

from greenllm.model.decoder_weights import Matrix
from greenllm.model.quantize import Floats, QuantizedMatrix, stacked


def parameter(name: str, kind: Type, shape: Sequence[int]) -> Node:
    """A graph input."""
    node = opset13.parameter(list(shape), kind)
    node.set_friendly_name(name)
    node.output(0).tensor.set_names({name})
    return node


def integers(*values: int) -> Node:
    """A constant list of int64."""
    return opset13.constant(np.array(values, np.int64))


def scalar(value: float) -> Node:
    """A constant float32."""
    return opset13.constant(np.float32(value))


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest, ties to even; numpy has no such type."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix [out, in] as constants: its numbers, and scales where they are quantized."""

    shape: tuple[int, int]
    numbers: Node
    scales: Node | None = None


def side_by_side(matrices: Sequence[Matrix]) -> Matrix:
    """Modules that read the same input as one matrix: rows below rows."""
    if len(matrices) == 1:
        return matrices[0]
    quantized = [m for m in matrices if isinstance(m, QuantizedMatrix)]
    if not quantized:
        return np.concatenate([m for m in matrices if not isinstance(m, QuantizedMatrix)])
    return stacked(quantized)


def stored(matrix: Matrix, floats: Type) -> StoredMatrix:
    """Put a matrix into constants; unquantized ones are stored as `floats`."""
    if not isinstance(matrix, QuantizedMatrix):
        return StoredMatrix((matrix.shape[0], matrix.shape[1]), _float_constant(matrix, floats))
    scales = opset13.constant(matrix.scales)
    if matrix.bits == 8:
        return StoredMatrix(matrix.shape, opset13.constant(matrix.integers), scales)
    rows, groups, half = matrix.integers.shape
    tensor = ov.Tensor(matrix.integers.reshape(-1), [rows, groups, 2 * half], Type.i4)
    return StoredMatrix(matrix.shape, ov.op.Constant(tensor, shared_memory=False), scales)


def _float_constant(values: Floats, floats: Type) -> Node:
    if floats == Type.f32:
        return opset13.constant(values)
    tensor = ov.Tensor(bfloat16_bits(values), list(values.shape), Type.bf16)
    return ov.op.Constant(tensor, shared_memory=False)


def matrix_node(matrix: StoredMatrix) -> Output:
    """A weight as a float32 output; quantized ones are decompressed inside the kernel."""
    numbers = _as_float32(matrix.numbers)
    if matrix.scales is None:
        return numbers.output(0)
    scaled = opset13.multiply(numbers, matrix.scales)
    if matrix.numbers.get_element_type() != Type.i4:
        return scaled.output(0)
    return opset13.reshape(scaled, integers(*matrix.shape), False).output(0)


def _as_float32(node: Node) -> Node:
    return node if node.get_element_type() == Type.f32 else opset13.convert(node, Type.f32)


def linear(x: Output, matrix: StoredMatrix, bias: Output | None) -> Output:
    """`x @ matrix.T + bias`."""
    y = opset13.matmul(x, matrix_node(matrix), False, True).output(0)
    return y if bias is None else opset13.add(y, bias).output(0)


def rows_of(table: StoredMatrix, ids: Node | Output) -> Output:
    """Table rows as float32 [ids, width]."""
    axis = opset13.constant(np.array(0, np.int64))
    if table.scales is None:
        # Not the other way round: a table that is converted whole takes its place in memory.
        return _as_float32(opset13.gather(table.numbers, ids, axis)).output(0)
    whole = _as_float32(opset13.gather(table.numbers, ids, axis))
    return opset13.multiply(whole, opset13.gather(table.scales, ids, axis)).output(0)


def rms_norm(x: Output, scale: Output, epsilon: float) -> Output:
    """Root-mean-square norm over the last axis."""
    mean = opset13.reduce_mean(opset13.power(x, scalar(2)), integers(-1), True)
    inverse = opset13.divide(scalar(1), opset13.sqrt(opset13.add(mean, scalar(epsilon))))
    return opset13.multiply(opset13.multiply(x, inverse), scale).output(0)


def rotate(x: Output, cosine: Output, sine: Output, half: int) -> Output:
    """Rotary embedding of `x` [tokens, heads, 1, head_dim]; angles [tokens, 1, 1, head_dim]."""
    halves = opset13.variadic_split(x, integers(3), integers(half, half))
    turned = opset13.concat(
        [opset13.multiply(halves.output(1), scalar(-1)), halves.output(0)], axis=-1
    )
    return opset13.add(opset13.multiply(x, cosine), opset13.multiply(turned, sine)).output(0)


def split(x: Output, widths: Sequence[int]) -> list[Output]:
    """Cut the last axis."""
    if len(widths) == 1:
        return [x]
    parts = opset13.variadic_split(x, integers(-1), integers(*widths))
    return [parts.output(index) for index in range(len(widths))]
