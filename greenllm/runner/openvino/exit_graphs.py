"""The graphs of `exiting.FirstLayers`: a step's logits, or several tokens in one call.

Contract: graphs are compiled by `prepare`, or by the first step that needs them; a small model has
some for one sequence too. All exits share the model's caches. Without adapters only.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from greenllm.core import Chunk
from greenllm.exits import EXIT_RUN
from greenllm.runner.exiting import LikelyToken, exit_layer
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.graph import ANY, PLAIN, build_graph
from greenllm.runner.openvino.inputs import Rotation, later_arrays, positions_of, step_arrays
from greenllm.runner.openvino.single import one_sequence
from greenllm.runner.openvino.unrolled import build_unrolled
from greenllm.runner.threads import ThreadPlan


@dataclass(frozen=True, slots=True)
class _Graph:
    """Layers, threads, steps (several choose a token each), and whether it is for one sequence."""

    layer: int
    threads: int
    num_steps: int
    is_single: bool


class ExitGraphs:
    """Every exit that requests have named."""

    def __init__(self, factory: DecoderFactory, rotation: Rotation, plan: ThreadPlan) -> None:
        self._factory = factory
        self._rotation = rotation
        self._plan = plan
        self._lock = threading.Lock()
        self._decoders: dict[_Graph, Decoder] = {}

    def prepare(self, layer: int) -> None:
        """Compile an exit's graphs; callable from any thread.

        What is there already does not wait for what others have compiled meanwhile.
        """
        if self._graphs(layer) <= set(self._decoders):
            return
        with self._lock:
            for graph in self._graphs(layer) - set(self._decoders):
                self._decoders = {**self._decoders, graph: self._compile(graph)}

    def _graphs(self, layer: int) -> set[_Graph]:
        singles = (False, True) if self._factory.is_small else (False,)
        return {
            _Graph(layer, threads, steps, single)
            for threads in self._plan.threads
            for steps in (1, EXIT_RUN)
            for single in singles
        }

    def use_threads(self, plan: ThreadPlan) -> None:
        """Drop what the plan does not need; what it needs is compiled when it is."""
        with self._lock:
            self._plan = plan
            self._decoders = {g: d for g, d in self._decoders.items() if g.threads in plan.threads}

    def _compile(self, graph: _Graph) -> Decoder:
        sizes = one_sequence(1, 1) if graph.is_single else ANY
        if graph.num_steps == 1:
            build = partial(build_graph, options=PLAIN, num_layers=graph.layer, sizes=sizes)
        else:
            build = partial(
                build_unrolled,
                num_layers=graph.layer,
                num_tokens=graph.num_steps,
                sizes=sizes,
                with_probabilities=True,
            )
        return self._factory.compile_graph(build, graph.threads)

    def logits(self, chunks: list[Chunk]) -> torch.Tensor:
        """See `exiting.FirstLayers`; valid until the next step."""
        return torch.from_numpy(self._run(chunks, 1).output(0))

    def tokens(self, chunks: list[Chunk]) -> list[list[LikelyToken]]:
        """See `exiting.FirstLayers`."""
        decoder = self._run(chunks, EXIT_RUN)
        pairs = zip(decoder.output(0).tolist(), decoder.output(1).tolist(), strict=True)
        return [[LikelyToken(*pair) for pair in zip(*row, strict=True)] for row in pairs]

    def _run(self, chunks: list[Chunk], num_steps: int) -> Decoder:
        is_single = self._factory.is_small and len(chunks) == 1
        threads = self._plan.threads_for(len(chunks))
        graph = _Graph(exit_layer(chunks), threads, num_steps, is_single)
        if graph not in self._decoders:
            self.prepare(graph.layer)
        inputs = step_arrays(chunks, self._factory.block_size, more=num_steps - 1)
        inputs |= self._rotation.of(positions_of(chunks))
        inputs["rows"] = np.arange(len(chunks), dtype=np.int32)
        if num_steps > 1:
            inputs |= later_arrays(chunks, num_steps - 1, self._rotation)
        decoder = self._decoders[graph]
        decoder.infer(inputs)
        return decoder
