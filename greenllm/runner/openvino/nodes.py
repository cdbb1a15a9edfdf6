"""The pieces a decoder graph is made of: constants, linear layers, norms, rotation.

Each is written in the form the CPU plugin recognises and fuses: compressed fully-connected layers
(convert, scale, multiply), RMS norms, and half-split rotary embedding on rank-4 tensors, split on
axis 3. Another spelling computes the same, but slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node, Output, Type, opset13

from greenllm.model.decoder_weights import Matrix
from greenllm.model.quantize import Floats, QuantizedMatrix


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


def side_by_side(matrices: Sequence[Matrix]) -> Matrix:
    """Modules that read the same input as one matrix: rows below rows."""
    if len(matrices) == 1:
        return matrices[0]
    quantized = [m for m in matrices if isinstance(m, QuantizedMatrix)]
    if not quantized:
        return np.concatenate([m for m in matrices if not isinstance(m, QuantizedMatrix)])
    rows = sum(matrix.shape[0] for matrix in quantized)
    return QuantizedMatrix(
        quantized[0].bits,
        (rows, quantized[0].shape[1]),
        np.concatenate([matrix.integers for matrix in quantized]),
        np.concatenate([matrix.scales for matrix in quantized]),
    )


def matrix_node(matrix: Matrix, floats: Type) -> Output:
    """A weight as a float32 output; quantized ones are decompressed inside the kernel."""
    if not isinstance(matrix, QuantizedMatrix):
        return _float_constant(matrix, floats)
    if matrix.bits == 8:
        whole = opset13.convert(opset13.constant(matrix.integers), Type.f32)
        return opset13.multiply(whole, opset13.constant(matrix.scales)).output(0)
    rows, groups, half = matrix.integers.shape
    tensor = ov.Tensor(matrix.integers.reshape(-1), [rows, groups, 2 * half], Type.i4)
    whole = opset13.convert(ov.op.Constant(tensor, shared_memory=False), Type.f32)
    scaled = opset13.multiply(whole, opset13.constant(matrix.scales))
    return opset13.reshape(scaled, integers(*matrix.shape), False).output(0)


def _float_constant(values: Floats, floats: Type) -> Output:
    if floats == Type.f32:
        return opset13.constant(values).output(0)
    tensor = ov.Tensor(bfloat16_bits(values), list(values.shape), Type.bf16)
    return opset13.convert(ov.op.Constant(tensor, shared_memory=False), Type.f32).output(0)


def linear(x: Output, matrix: Matrix, bias: Floats | None, floats: Type) -> Output:
    """`x @ matrix.T + bias`."""
    y = opset13.matmul(x, matrix_node(matrix, floats), False, True).output(0)
    return y if bias is None else opset13.add(y, opset13.constant(bias[None])).output(0)


def rows_of(table: Matrix, ids: Node, floats: Type) -> Output:
    """Table rows as float32 [ids, width]."""
    axis = opset13.constant(np.array(0, np.int64))
    if not isinstance(table, QuantizedMatrix):
        return opset13.gather(_float_constant(table, floats), ids, axis).output(0)
    whole = opset13.gather(opset13.constant(table.integers), ids, axis)
    scales = opset13.gather(opset13.constant(table.scales), ids, axis)
    return opset13.multiply(opset13.convert(whole, Type.f32), scales).output(0)


def rms_norm(x: Output, scale: Floats, epsilon: float) -> Output:
    """Root-mean-square norm over the last axis."""
    mean = opset13.reduce_mean(opset13.power(x, scalar(2)), integers(-1), True)
    inverse = opset13.divide(scalar(1), opset13.sqrt(opset13.add(mean, scalar(epsilon))))
    return opset13.multiply(opset13.multiply(x, inverse), opset13.constant(scale)).output(0)


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
