"""Graphs for the step of one sequence, of fixed sizes, where a model is small enough for them.

What the plugin does for a node whose sizes may change costs about a microsecond, and several when
they did change since the last step: more than a small model's arithmetic. So steps of one sequence
have graphs of a few sizes, and what is shorter is filled up with tokens after its end. Their keys
and values are written where later tokens will write theirs, or into a block that no sequence has.

Contract: each graph is compiled when it is prepared; where none fits, the decoder of any size does
the same. Without adapters only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm.core import Chunk
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.graph import PLAIN, Sizes, build_graph
from greenllm.runner.openvino.inputs import Arrays, Rotation
from greenllm.runner.threads import ThreadPlan


def one_sequence(num_tokens: int, num_rows: int) -> Sizes:
    """Sizes of a step of one sequence."""
    return Sizes(1, num_tokens, num_rows)


class SingleDecoders:
    """Steps of up to as many tokens as were prepared."""

    def __init__(self, factory: DecoderFactory, rotation: Rotation, plan: ThreadPlan) -> None:
        self._factory = factory
        self._rotation = rotation
        self._plan = plan
        self._lock = threading.Lock()
        self._decoders: dict[tuple[int, int], Decoder] = {}

    def prepare(self, *num_tokens: int) -> None:
        """Compile the graphs of so many tokens; callable from any thread.

        What is there already does not wait for what others have compiled meanwhile.
        """
        there = {number for number, _ in self._decoders}
        if self._factory.is_small and not there.issuperset(num_tokens):
            with self._lock:
                self._compile(num_tokens)

    def use_threads(self, plan: ThreadPlan) -> None:
        """Compile what the plan needs, drop what it does not."""
        with self._lock:
            self._plan = plan
            self._compile(())

    def _compile(self, more: Iterable[int]) -> None:
        """What there is and more, for the present plan; the lock is held."""
        numbers = {number for number, _ in self._decoders} | set(more)
        wanted = {(number, self._plan.threads_for(number)) for number in numbers}
        for number, threads in wanted - set(self._decoders):
            build = partial(build_graph, options=PLAIN, sizes=one_sequence(number, number))
            decoder = self._factory.compile_graph(build, threads)
            self._decoders = {**self._decoders, (number, threads): decoder}
        self._decoders = {key: self._decoders[key] for key in wanted}

    def logits(self, chunk: Chunk, rows: range) -> NDArray[Any] | None:
        """Logits of some of a chunk's tokens, valid until the next step; None where none fits."""
        fitting = [key for key in self._decoders if key[0] >= chunk.num_tokens]
        if not fitting or chunk.seq.request.adapter is not None:
            return None
        size = min(fitting)
        found = self._decoders[size].infer(self._inputs(chunk, size[0]))
        return found[rows.start : rows.stop]

    def _inputs(self, chunk: Chunk, size: int) -> Arrays:
        """Inputs of a graph of `size` tokens, of which the chunk's come first."""
        ids = np.zeros(size, np.int32)
        ids[: chunk.num_tokens] = chunk.token_ids
        end = chunk.start + size
        num_blocks = -(-end // self._factory.block_size)
        blocks = np.full(num_blocks, self._factory.spare_block, np.int32)
        own = chunk.seq.block_table[:num_blocks]
        blocks[: len(own)] = own
        return {
            "ids": ids,
            "rows": np.arange(size, dtype=np.int32),
            "past_lens": np.array([chunk.start], np.int32),
            "subsequence_begins": np.array([0, size], np.int32),
            "block_indices": blocks,
            "block_indices_begins": np.array([0, num_blocks], np.int32),
            "max_context_len": np.array(end, np.int32),
            **self._rotation.of(np.arange(chunk.start, end)),
        }
