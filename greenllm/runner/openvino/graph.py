"""Builds a decoder's graph: one packed row of tokens in, logits of the wanted rows out.

Inputs: `ids` [tokens]; `cosine`, `sine` [tokens, 1, 1, head_dim]; `rows` [wanted], the tokens
whose logits are needed; the ragged batch (see `attention.StepInputs`); `key.N`, `value.N` caches;
with adapters their stacked matrices and masks (see `lora`). Output: logits [wanted, vocabulary],
float32.

Queries and keys are rotated together. Without adapters gate and up stay two layers (measured:
fusing them brings nothing); with adapters they are one, so that one pair of matrices serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import Node, Output, Type, opset13

from greenllm.model.decoder_weights import DecoderWeights
from greenllm.model.spec import DecoderSpec, Projection
from greenllm.runner.openvino.attention import (
    HeadShape,
    StepInputs,
    paged_attention,
)
from greenllm.runner.openvino.lora import LoraInputs
from greenllm.runner.openvino.nodes import (
    integers,
    linear,
    parameter,
    rms_norm,
    rotate,
    rows_of,
    side_by_side,
    split,
)

STEP_INPUTS = (
    "past_lens",
    "subsequence_begins",
    "block_indices",
    "block_indices_begins",
    "max_context_len",
)


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """How unquantized matrices are stored, and which projections have adapters."""

    floats: Type
    lora_groups: frozenset[str] = frozenset()
    lora_type: Type = Type.f32


def build_graph(weights: DecoderWeights, options: GraphOptions) -> ov.Model:
    """The whole decoder."""
    return _Builder(weights, options).build()


class _Builder:
    """Holds what every layer needs while the graph grows."""

    def __init__(self, weights: DecoderWeights, options: GraphOptions) -> None:
        self.weights = weights
        self.spec: DecoderSpec = weights.spec
        self.options = options
        spec = self.spec
        self.ids = parameter("ids", Type.i32, [-1])
        self.rows = parameter("rows", Type.i32, [-1])
        self.cosine = parameter("cosine", Type.f32, [-1, 1, 1, spec.head_dim])
        self.sine = parameter("sine", Type.f32, [-1, 1, 1, spec.head_dim])
        shapes = {name: [-1] for name in STEP_INPUTS} | {"max_context_len": []}
        inputs = {name: parameter(name, Type.i32, shape) for name, shape in shapes.items()}
        self.step = StepInputs(**inputs)
        self.parameters: list[Node] = [
            self.ids,
            self.rows,
            self.cosine,
            self.sine,
            *inputs.values(),
        ]
        self.lora = LoraInputs(spec, options.lora_groups, options.lora_type)

    def build(self) -> ov.Model:
        spec = self.spec
        x = rows_of(self.weights.embedding(), self.ids, self.options.floats)
        for layer in range(spec.num_layers):
            x = self._layer(layer, x)
        wanted = opset13.gather(x, self.rows, opset13.constant(np.array(0, np.int64)))
        normed = rms_norm(wanted.output(0), self.weights.norm("model.norm"), spec.norm_eps)
        logits = linear(normed, self.weights.head(), None, self.options.floats)
        result = opset13.result(logits)
        return ov.Model([result], [*self.parameters, *self.lora.parameters], "decoder")

    def _layer(self, layer: int, x: Output) -> Output:
        spec = self.spec
        qkv, out, gate_up, down = spec.projections
        prefix = f"model.layers.{layer}"
        normed = self._norm(f"{prefix}.input_layernorm", x)
        attended = self._attention(layer, self._project(layer, qkv, normed))
        x = opset13.add(x, self._project(layer, out, attended)).output(0)
        normed = self._norm(f"{prefix}.post_attention_layernorm", x)
        gate, up = self._gate_and_up(layer, gate_up, normed)
        inner = opset13.multiply(opset13.swish(gate), up).output(0)
        return opset13.add(x, self._project(layer, down, inner)).output(0)

    def _norm(self, name: str, x: Output) -> Output:
        return rms_norm(x, self.weights.norm(name), self.spec.norm_eps)

    def _project(self, layer: int, projection: Projection, x: Output) -> Output:
        """All modules of a projection side by side, plus their adapters."""
        modules = [self.weights.module(layer, name) for name, _ in projection.modules]
        bias = self.weights.bias(layer, projection.modules)
        y = linear(x, side_by_side(modules), bias, self.options.floats)
        return self.lora.add(layer, projection, x, y)

    def _gate_and_up(self, layer: int, projection: Projection, x: Output) -> tuple[Output, Output]:
        inner = self.spec.intermediate_size
        if len(projection.modules) == 1 or projection.group in self.options.lora_groups:
            gate, up = split(self._project(layer, projection, x), [inner, inner])
            return gate, up
        parts = [
            Projection(projection.group, projection.in_features, (m,)) for m in projection.modules
        ]
        gate, up = (self._project(layer, part, x) for part in parts)
        return gate, up

    def _attention(self, layer: int, qkv: Output) -> Output:
        spec = self.spec
        size = spec.head_dim
        rotated, kept = spec.num_heads + spec.num_kv_heads, spec.num_kv_heads
        turning, value = split(qkv, [rotated * size, kept * size])
        heads = opset13.reshape(turning, integers(-1, rotated, 1, size), False).output(0)
        if spec.has_head_norms:
            heads = self._head_norms(layer, heads)
        heads = rotate(heads, self.cosine.output(0), self.sine.output(0), size // 2)
        flat = opset13.reshape(heads, integers(-1, rotated * size), False).output(0)
        query, key = split(flat, [spec.num_heads * size, kept * size])
        # The plugin chooses the caches' type and block layout when it compiles.
        key_cache = parameter(f"key.{layer}", Type.dynamic, [-1] * 4)
        caches = key_cache, parameter(f"value.{layer}", Type.dynamic, [-1] * 4)
        self.parameters += caches
        shape = HeadShape(kept, size, spec.windows[layer])
        return paged_attention(query, key, value, caches, self.step, shape)

    def _head_norms(self, layer: int, heads: Output) -> Output:
        """Qwen3 norms each query and key head before rotating."""
        spec, prefix = self.spec, f"model.layers.{layer}.self_attn"
        counts = integers(spec.num_heads, spec.num_kv_heads)
        parts = opset13.variadic_split(heads, integers(1), counts)
        query = rms_norm(parts.output(0), self.weights.norm(f"{prefix}.q_norm"), spec.norm_eps)
        key = rms_norm(parts.output(1), self.weights.norm(f"{prefix}.k_norm"), spec.norm_eps)
        return opset13.concat([query, key], axis=1).output(0)
