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
from typing import NamedTuple

import numpy as np
import openvino as ov
from openvino import Node, Output, Type, opset13

from greenllm.model.spec import Projection
from greenllm.runner.openvino.attention import HeadShape, StepInputs, paged_attention
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.lora import LoraInputs
from greenllm.runner.openvino.nodes import (
    integers,
    linear,
    parameter,
    rms_norm,
    rotate,
    rows_of,
    split,
)


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Which projections have adapters, and how their matrices are stored."""

    lora_groups: frozenset[str] = frozenset()
    lora_type: Type = Type.f32


PLAIN = GraphOptions()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many sequences, tokens and wanted rows a graph takes; -1 is any number.

    A graph of fixed sizes spares the plugin what it does for each node of another, about a
    microsecond: a fourth of a small model's step.
    """

    sequences: int = -1
    tokens: int = -1
    rows: int = -1

    @property
    def bounds(self) -> int:
        """Entries of a list of where sequences begin, and where the last ends."""
        return self.sequences + 1 if self.sequences >= 0 else -1


ANY = Sizes()


class Angles(NamedTuple):
    """Cosines and sines of the tokens' positions, [tokens, 1, 1, head_dim]."""

    cosine: Output
    sine: Output


def build_graph(
    constants: Constants,
    options: GraphOptions,
    num_layers: int | None = None,
    sizes: Sizes = ANY,
) -> ov.Model:
    """The whole decoder, or its first layers and the head."""
    layers = Layers(constants, options, sizes)
    ids, rows = layers.ids(), layers.rows()
    angles, step = layers.angles(), layers.step_inputs()
    x = layers.embed(ids)
    for layer in range(num_layers or constants.spec.num_layers):
        x = layers.run(layer, x, angles, step)
    result = opset13.result(layers.logits(pick(x, rows)))
    return ov.Model([result], layers.parameters, "decoder")


def pick(x: Output, rows: Output) -> Output:
    """Some rows of `x`."""
    return opset13.gather(x, rows, opset13.constant(np.array(0, np.int64))).output(0)


class Layers:
    """Grows a graph; a layer that runs several times has one pair of caches."""

    def __init__(
        self, constants: Constants, options: GraphOptions = PLAIN, sizes: Sizes = ANY
    ) -> None:
        self.constants = constants
        self.spec = constants.spec
        self.sizes = sizes
        self._options = options
        self._lora = LoraInputs(self.spec, options.lora_groups, options.lora_type)
        self._inputs: list[Node] = []
        self._caches: dict[int, tuple[Node, Node]] = {}

    @property
    def parameters(self) -> list[Node]:
        """All inputs so far."""
        caches = [cache for pair in self._caches.values() for cache in pair]
        return [*self._inputs, *caches, *self._lora.parameters]

    def input(self, name: str, kind: Type, shape: list[int]) -> Output:
        """A new input."""
        self._inputs.append(parameter(name, kind, shape))
        return self._inputs[-1].output(0)

    def ids(self) -> Output:
        """Input `ids`."""
        return self.input("ids", Type.i32, [self.sizes.tokens])

    def rows(self) -> Output:
        """Input `rows`."""
        return self.input("rows", Type.i32, [self.sizes.rows])

    def angles(self, prefix: str = "", count: int | None = None) -> Angles:
        """Inputs `cosine` and `sine`, of the step's tokens or of another number of them."""
        shape = [self.sizes.tokens if count is None else count, 1, 1, self.spec.head_dim]
        return Angles(*(self.input(f"{prefix}{n}", Type.f32, shape) for n in Angles._fields))

    def step_inputs(self) -> StepInputs:
        """Inputs that describe the ragged batch."""
        bounds = self.sizes.bounds
        shapes = {
            "past_lens": [self.sizes.sequences],
            "subsequence_begins": [bounds],
            "block_indices": [-1],
            "block_indices_begins": [bounds],
            "max_context_len": [],
        }
        return StepInputs(**{n: self.input(n, Type.i32, shape) for n, shape in shapes.items()})

    def embed(self, ids: Output) -> Output:
        """Rows of the token table, [ids, hidden]."""
        return rows_of(self.constants.table(), ids)

    def logits(self, x: Output) -> Output:
        """Final norm and head."""
        normed = self._norm("model.norm", x)
        return linear(normed, self.constants.head(), None)

    def run(self, layer: int, x: Output, angles: Angles, step: StepInputs) -> Output:
        """One layer over a step's tokens."""
        qkv, out, gate_up, down = self.spec.projections
        prefix = f"model.layers.{layer}"
        normed = self._norm(f"{prefix}.input_layernorm", x)
        attended = self._attention(layer, self._project(layer, qkv, normed), angles, step)
        x = opset13.add(x, self._project(layer, out, attended)).output(0)
        normed = self._norm(f"{prefix}.post_attention_layernorm", x)
        gate, up = self._gate_and_up(layer, gate_up, normed)
        inner = opset13.multiply(opset13.swish(gate), up).output(0)
        return opset13.add(x, self._project(layer, down, inner)).output(0)

    def _norm(self, name: str, x: Output) -> Output:
        return rms_norm(x, self.constants.norm(name), self.spec.norm_eps)

    def _project(self, layer: int, projection: Projection, x: Output) -> Output:
        """All modules of a projection side by side, plus their adapters."""
        modules = projection.modules
        bias = self.constants.bias(layer, modules)
        y = linear(x, self.constants.projection(layer, modules), bias)
        return self._lora.add(layer, projection, x, y)

    def _gate_and_up(self, layer: int, projection: Projection, x: Output) -> tuple[Output, Output]:
        inner = self.spec.intermediate_size
        if len(projection.modules) == 1 or projection.group in self._options.lora_groups:
            gate, up = split(self._project(layer, projection, x), [inner, inner])
            return gate, up
        parts = [
            Projection(projection.group, projection.in_features, (m,)) for m in projection.modules
        ]
        gate, up = (self._project(layer, part, x) for part in parts)
        return gate, up

    def _attention(self, layer: int, qkv: Output, angles: Angles, step: StepInputs) -> Output:
        spec = self.spec
        size = spec.head_dim
        rotated, kept = spec.num_heads + spec.num_kv_heads, spec.num_kv_heads
        turning, value = split(qkv, [rotated * size, kept * size])
        heads = opset13.reshape(turning, integers(-1, rotated, 1, size), False).output(0)
        if spec.has_head_norms:
            heads = self._head_norms(layer, heads)
        heads = rotate(heads, *angles, size // 2)
        flat = opset13.reshape(heads, integers(-1, rotated * size), False).output(0)
        query, key = split(flat, [spec.num_heads * size, kept * size])
        shape = HeadShape(kept, size, spec.windows[layer])
        return paged_attention(query, key, value, self._caches_of(layer), step, shape)

    def _caches_of(self, layer: int) -> tuple[Node, Node]:
        """The plugin chooses the caches' type and block layout when it compiles."""
        if layer not in self._caches:
            self._caches[layer] = (
                parameter(f"key.{layer}", Type.dynamic, [-1] * 4),
                parameter(f"value.{layer}", Type.dynamic, [-1] * 4),
            )
        return self._caches[layer]

    def _head_norms(self, layer: int, heads: Output) -> Output:
        """Qwen3 norms each query and key head before rotating."""
        spec, prefix = self.spec, f"model.layers.{layer}.self_attn"
        counts = integers(spec.num_heads, spec.num_kv_heads)
        parts = opset13.variadic_split(heads, integers(1), counts)
        query = self._norm(f"{prefix}.q_norm", parts.output(0))
        key = self._norm(f"{prefix}.k_norm", parts.output(1))
        return opset13.concat([query, key], axis=1).output(0)
