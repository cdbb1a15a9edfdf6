"""Compiled graphs over one set of key and value blocks.

A graph is compiled for a number of threads and a set of adapted projections; all of them read and
write the same cache tensors, so a sequence may go through one and then through another. The plugin
chooses the caches' type and layout when it compiles the first.

All graphs share their constants; the plugin packs the matrices anew for each.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from greenllm.model.decoder_weights import DecoderWeights
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.graph import GraphOptions, build_graph
from greenllm.runner.openvino.inputs import Arrays
from greenllm.runner.openvino.precision import Precision

# Below this, what a step of one sequence costs beside its arithmetic is worth graphs of its own.
_SMALL_BYTES = 64_000_000
_HOLDERS = {1: np.uint8, 2: np.uint16, 4: np.float32}


class Decoder:
    """A compiled graph on the caches; `bound` is what its adapter inputs were last set to.

    Inputs are copied into tensors that stay bound while their shapes do: binding new ones for each
    step took a sixth of a small model's step.
    """

    def __init__(self, request: ov.InferRequest) -> None:
        self.request = request
        self.bound = (0, 0)
        ports = enumerate(request.get_compiled_model().inputs)
        self._ports = {port.get_any_name(): number for number, port in ports}
        self._inputs: Arrays = {}

    def infer(self, inputs: Arrays) -> NDArray[Any]:
        """Run a step; what comes out is valid until the next."""
        for name, values in inputs.items():
            held = self._inputs.get(name)
            if held is not None and held.shape == values.shape:
                held[...] = values
            else:
                tensor = ov.Tensor(values)
                self.request.set_input_tensor(self._ports[name], tensor)
                self._inputs[name] = tensor.data
        self.request.infer(share_outputs=True)  # else it copies them
        return self.output(0)

    def output(self, number: int) -> NDArray[Any]:
        """What the last step put out; valid until the next."""
        output: NDArray[Any] = self.request.get_output_tensor(number).data
        return output


class DecoderFactory:
    """Compiles decoders that share caches; `compile` may be called from any thread."""

    def __init__(self, weights: DecoderWeights, precision: Precision) -> None:
        self.is_small = weights.num_bytes <= _SMALL_BYTES
        self.spare_block = 0
        self._constants = Constants(weights, precision.floats)
        self._precision = precision
        self._lock = threading.Lock()
        self._core = ov.Core()
        self._caches: dict[str, ov.Tensor] = {}
        self._blocks: list[NDArray[np.generic]] = []
        self._models: dict[frozenset[str], ov.Model] = {}
        self._first: ov.CompiledModel | None = self._compiled(1, self._model(frozenset()))
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
        """Zeroed blocks for every layer; numpy's zeros take no memory before they are written.

        There is one more, for what nobody will read.
        """
        self.spare_block = num_blocks
        for name, (kind, dims) in self._layout.items():
            shape = [num_blocks + 1, *dims]
            zeros = np.zeros(shape, _HOLDERS[int(kind.size)])
            self._caches[name] = ov.Tensor(zeros, shape, kind)
            self._blocks.append(zeros)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (from, to) in every layer, in order."""
        for source, target in copies:
            for blocks in self._blocks:
                blocks[target] = blocks[source]

    def compile(self, threads: int, lora_groups: frozenset[str] = frozenset()) -> Decoder:
        """A decoder on the shared caches, which must have been allocated."""
        with self._lock:
            compiled, self._first = self._first, None
            if compiled is None or threads != 1 or lora_groups:
                self._first = compiled
                compiled = self._compiled(threads, self._model(lora_groups))
        return self._decoder(compiled)

    def compile_graph(self, build: Callable[[Constants], ov.Model], threads: int) -> Decoder:
        """Any other graph on the shared caches, made of the model's constants."""
        with self._lock:
            compiled = self._compiled(threads, build(self._constants))
        return self._decoder(compiled)

    def _compiled(self, threads: int, model: ov.Model) -> ov.CompiledModel:
        return self._core.compile_model(model, "CPU", self._precision.properties(threads))

    def _decoder(self, compiled: ov.CompiledModel) -> Decoder:
        request = compiled.create_infer_request()
        for port in compiled.inputs:
            tensor = self._caches.get(port.get_any_name())
            if tensor is not None:
                request.set_tensor(port, tensor)
        return Decoder(request)

    def _model(self, lora_groups: frozenset[str]) -> ov.Model:
        """The graph for these groups; kept are the one without adapters and the last with some."""
        plain: frozenset[str] = frozenset()
        model = self._models.get(lora_groups)
        if model is None:
            options = GraphOptions(lora_groups, self._precision.lora_type)
            model = build_graph(self._constants, options)
            kept = {plain: self._models[plain]} if plain in self._models else {}
            self._models = {**kept, lora_groups: model}
        return model


def _dims(port: ov.Output) -> list[int]:
    """[heads, tokens, width] of one cache block; 8-bit caches hold their scales in it too."""
    shape = port.get_partial_shape()
    return [shape[axis].get_length() for axis in (1, 2, 3)]
