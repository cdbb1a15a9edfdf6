"""Guesses from the first layers of a decoder, or all of them: one call for several tokens guessed.

Contract: see `base.Drafter`. A chunk may hold more than its sequence's newest token: what was not
computed before it. Graphs (see `unrolled`) guess as many tokens as were prepared, up to four, which
several runs add up to more: each graph takes memory for its layers' matrices, and time to compile.
Nothing is guessed that no graph is small enough for.

Guesses are made without adapters, on the keys and values that are there. What is written for them,
in the first layers and at places from the newest token on, is written again when they are checked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from greenllm.core import Chunk
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.inputs import Rotation, positions_of, step_arrays
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape

_LONGEST = 4


class UnrolledDrafter:
    """Asks the first `num_layers` layers and the head."""

    def __init__(
        self,
        factory: DecoderFactory,
        rotation: Rotation,
        num_layers: int,
        shape: ModelShape,
        plan: ThreadPlan,
    ) -> None:
        self.shape: ModelShape | None = shape
        self.read: Sequence[Chunk] = ()
        self._factory = factory
        self._rotation = rotation
        self._num_layers = num_layers
        self._plan = plan
        self._lock = threading.Lock()
        self._decoders: dict[tuple[int, int], Decoder] = {}
        self._prepared: tuple[int, ...] = ()

    def prepare(self, num_tokens: int) -> None:
        """Compile the graphs that guess so many tokens; see `base.Drafter`."""
        longest, rest = min(num_tokens, _LONGEST), num_tokens % _LONGEST
        wanted = {longest, rest} - {0, *self._prepared}
        if wanted:
            with self._lock:
                self._compile({*self._prepared, *wanted}, self._plan)

    def use_threads(self, plan: ThreadPlan) -> None:
        """Compile what the plan needs, drop what it does not."""
        with self._lock:
            self._compile({*self._prepared}, plan)

    def _compile(self, numbers: set[int], plan: ThreadPlan) -> None:
        wanted = {(number, threads) for number in numbers for threads in plan.threads}
        for number, threads in wanted - set(self._decoders):
            decoder = self._factory.compile_drafter(self._num_layers, number, threads)
            self._decoders = {**self._decoders, (number, threads): decoder}
        self._plan, self._prepared = plan, tuple(sorted(numbers, reverse=True))
        self._decoders = {key: self._decoders[key] for key in wanted}

    def draft(self, chunks: Sequence[Chunk]) -> list[tuple[int, ...]]:
        """See `base.Drafter`."""
        guesses: list[tuple[int, ...]] = [()] * len(chunks)
        places: dict[int, list[int]] = {}
        for i, chunk in enumerate(chunks):
            if number := self._largest(chunk.room):
                places.setdefault(number, []).append(i)
        for number, asked in places.items():
            found = self._guess([chunks[i] for i in asked], number)
            for i, ids in zip(asked, found.tolist(), strict=True):
                guesses[i] = tuple(ids)
        rest = {i: _after(chunk, guesses[i]) for i, chunk in enumerate(chunks) if guesses[i]}
        rest = {i: chunk for i, chunk in rest.items() if self._largest(chunk.room)}
        if rest:
            for i, ids in zip(rest, self.draft(list(rest.values())), strict=True):
                guesses[i] += ids
        return guesses

    def _largest(self, room: int) -> int:
        """Tokens that the largest graph guesses that fits, or 0."""
        return next((number for number in self._prepared if number <= room), 0)

    def _guess(self, chunks: list[Chunk], number: int) -> NDArray[np.int32]:
        """Guesses [chunks, number]."""
        inputs = step_arrays(chunks, self._factory.block_size, more=number - 1)
        ends = np.array([chunk.end for chunk in chunks], np.int32)
        inputs |= self._rotation.of(positions_of(chunks))
        inputs["rows"] = inputs["subsequence_begins"][1:] - 1
        if number > 1:
            inputs["later_lens"] = ends
            inputs["later_begins"] = np.arange(len(chunks) + 1, dtype=np.int32)
            positions = np.arange(number - 1)[:, None] + ends
            inputs |= self._rotation.of(positions, "later_")
        threads = self._plan.threads_for(len(chunks))
        guesses: NDArray[np.int32] = self._decoders[number, threads].infer(inputs)
        return guesses


def _after(chunk: Chunk, guesses: tuple[int, ...]) -> Chunk:
    """The last guess, as the newest token of what follows."""
    start, room = chunk.end - 1 + len(guesses), chunk.room - len(guesses)
    return Chunk(chunk.seq, start, 1, samples=True, draft=guesses[-1:], room=room)
