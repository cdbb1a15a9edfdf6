"""Compiled graphs over one set of key and value blocks.

A graph is compiled for a number of threads and a set of adapted projections; all of them read and
write the same cache tensors, so a sequence may go through one and then through another. The plugin
chooses the caches' type and layout when it compiles the first.

Graphs that differ only in threads are compiled from one model, so they share its constants; the
plugin packs the matrices anew for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from greenllm.model.decoder_weights import DecoderWeights
from greenllm.runner.openvino.graph import GraphOptions, build_graph
from greenllm.runner.openvino.precision import Precision

_HOLDERS = {1: np.uint8, 2: np.uint16, 4: np.float32}


@dataclass(slots=True)
class Decoder:
    """A compiled graph's request; `bound` is what its adapter inputs were last set to."""

    request: ov.InferRequest
    bound: tuple[int, int] = (0, 0)


class DecoderFactory:
    """Compiles decoders that share caches; `compile` may be called from any thread."""

    def __init__(self, weights: DecoderWeights, precision: Precision) -> None:
        self._weights = weights
        self._precision = precision
        self._core = ov.Core()
        self._caches: dict[str, ov.Tensor] = {}
        self._blocks: list[NDArray[np.generic]] = []
        self._models: dict[frozenset[str], ov.Model] = {}
        self._first: ov.CompiledModel | None = self._compiled(1, frozenset())
        self._layout = {
            port.get_any_name(): (port.get_element_type(), _dims(port))
            for port in self._first.inputs
            if port.get_any_name().startswith(("key.", "value."))
        }

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._layout["value.0"][1][1]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return sum(math.prod(dims) * int(kind.size) for kind, dims in self._layout.values())

    def allocate(self, num_blocks: int) -> None:
        """Zeroed blocks for every layer; numpy's zeros take no memory before they are written."""
        for name, (kind, dims) in self._layout.items():
            zeros = np.zeros([num_blocks, *dims], _HOLDERS[int(kind.size)])
            self._caches[name] = ov.Tensor(zeros, [num_blocks, *dims], kind)
            self._blocks.append(zeros)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (from, to) in every layer, in order."""
        for source, target in copies:
            for blocks in self._blocks:
                blocks[target] = blocks[source]

    def compile(self, threads: int, lora_groups: frozenset[str] = frozenset()) -> Decoder:
        """A decoder on the shared caches, which must have been allocated."""
        compiled, self._first = self._first, None
        if compiled is None or threads != 1 or lora_groups:
            self._first = compiled
            compiled = self._compiled(threads, lora_groups)
        request = compiled.create_infer_request()
        for name, tensor in self._caches.items():
            request.set_tensor(name, tensor)
        return Decoder(request)

    def _compiled(self, threads: int, lora_groups: frozenset[str]) -> ov.CompiledModel:
        properties = self._precision.properties(threads)
        return self._core.compile_model(self._model(lora_groups), "CPU", properties)

    def _model(self, lora_groups: frozenset[str]) -> ov.Model:
        """The graph for these groups; kept are the one without adapters and the last with some."""
        plain: frozenset[str] = frozenset()
        model = self._models.get(lora_groups)
        if model is None:
            options = GraphOptions(self._precision.floats, lora_groups, self._precision.lora_type)
            model = build_graph(self._weights, options)
            kept = {plain: self._models[plain]} if plain in self._models else {}
            self._models = {**kept, lora_groups: model}
        return model


def _dims(port: ov.Output) -> list[int]:
    """[heads, tokens, width] of one cache block; 8-bit caches hold their scales in it too."""
    shape = port.get_partial_shape()
    return [shape[axis].get_length() for axis in (1, 2, 3)]
