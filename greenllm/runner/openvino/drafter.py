"""Draft tokens from the first layers of a decoder, or all of them: one call for several tokens.

Contract: see `Drafter`. A chunk may hold more than its sequence's newest token: what was not
computed before it. Graphs (see `unrolled`) draft as many tokens as were prepared, up to four, which
several runs add up to more: each graph takes memory for its layers' matrices, and time to compile.
Nothing is drafted where every graph is too large for the room.

Draft tokens are made without adapters, on the keys and values that are there. What is written for
them, in the first layers and at places from the newest token on, is written again when they are
checked.

A small model has graphs for one sequence too. If nothing else runs in the step, an early exit's
goes on through the other layers, and the runner finds the logits of the check with `checked`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from greenllm.core import Chunk, DraftPass
from greenllm.core import Sequence as TokenSequence
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.graph import ANY
from greenllm.runner.openvino.inputs import (
    Arrays,
    Rotation,
    later_arrays,
    positions_of,
    step_arrays,
)
from greenllm.runner.openvino.single import one_sequence
from greenllm.runner.openvino.unrolled import build_checked, build_unrolled
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape

_LONGEST = 4
# A draft model has not seen its last draft token when all of them were accepted.
_FEW_TOKENS = (1, 2)


@dataclass(frozen=True, slots=True)
class _Graph:
    """How many tokens a graph drafts, and after how many of one sequence; 0 is any batch."""

    number: int
    threads: int
    num_tokens: int = 0
    checks: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    """Logits [1 + draft tokens, vocabulary] after a sequence's newest token and its draft."""

    seq: TokenSequence
    start: int
    draft: tuple[int, ...]
    logits: NDArray[np.float32]

    def fits(self, chunk: Chunk) -> bool:
        """Whether they are those that a chunk needs."""
        is_same = chunk.seq is self.seq and chunk.start == self.start
        return is_same and chunk.draft == self.draft


class UnrolledDrafter:
    """Asks the first `num_layers` layers and the head; `is_exit` says that there are others."""

    def __init__(
        self,
        factory: DecoderFactory,
        rotation: Rotation,
        num_layers: int,
        shape: ModelShape,
        plan: ThreadPlan,
        *,
        is_exit: bool,
    ) -> None:
        self.shape: ModelShape | None = shape
        self.passes: Sequence[DraftPass] = ()
        self._passes: list[DraftPass] = []
        self._factory = factory
        self._rotation = rotation
        self._num_layers = num_layers
        self._plan = plan
        self._is_exit = is_exit
        self._lock = threading.Lock()
        self._decoders: dict[_Graph, Decoder] = {}
        self._prepared: tuple[int, ...] = ()
        self._checked: _Checked | None = None

    def prepare(self, num_tokens: int) -> None:
        """Compile the graphs that draft so many tokens; see `Drafter`."""
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
        wanted = {graph for number in numbers for graph in self._graphs(number, plan)}
        for graph in wanted - set(self._decoders):
            sizes = one_sequence(graph.num_tokens, 1) if graph.num_tokens else ANY
            make = build_checked if graph.checks else build_unrolled
            build = partial(make, num_layers=self._num_layers, num_tokens=graph.number, sizes=sizes)
            decoder = self._factory.compile_graph(build, graph.threads)
            self._decoders = {**self._decoders, graph: decoder}
        self._plan, self._prepared = plan, tuple(sorted(numbers, reverse=True))
        self._decoders = {key: self._decoders[key] for key in wanted}

    def _graphs(self, number: int, plan: ThreadPlan) -> list[_Graph]:
        """The graphs that draft so many tokens."""
        graphs = [_Graph(number, threads) for threads in plan.threads]
        if self._factory.is_small:
            threads = plan.threads_for(1)
            single = [_Graph(number, threads, tokens) for tokens in _FEW_TOKENS]
            graphs += [_Graph(number, threads, 1, checks=True)] if self._is_exit else single
        return graphs

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """See `Drafter`."""
        self.passes = self._passes = []
        if whole and len(chunks) == 1 and (draft := self._check(chunks[0])):
            return [draft]
        return self._draft(chunks)

    def _draft(self, chunks: Sequence[Chunk]) -> list[tuple[int, ...]]:
        """With the largest graphs that fit, and again for the room that is left."""
        found: list[tuple[int, ...]] = [()] * len(chunks)
        places: dict[int, list[int]] = {}
        for i, chunk in enumerate(chunks):
            if number := self._largest(chunk.room):
                places.setdefault(number, []).append(i)
        for number, asked in places.items():
            ids = self._tokens([chunks[i] for i in asked], number)
            for i, drafted in zip(asked, ids.tolist(), strict=True):
                found[i] = tuple(drafted)
        rest = {i: _after(chunk, found[i]) for i, chunk in enumerate(chunks) if found[i]}
        rest = {i: chunk for i, chunk in rest.items() if self._largest(chunk.room)}
        if rest:
            for i, more in zip(rest, self._draft(list(rest.values())), strict=True):
                found[i] += more
        return found

    def checked(self, chunk: Chunk) -> NDArray[np.float32] | None:
        """The logits of a step of one chunk, if the last draft computed them."""
        found, self._checked = self._checked, None
        return found.logits if found is not None and found.fits(chunk) else None

    def _largest(self, room: int) -> int:
        """Tokens that the largest graph drafts that fits, or 0."""
        return next((number for number in self._prepared if number <= room), 0)

    def _check(self, chunk: Chunk) -> tuple[int, ...]:
        """A draft that is checked too; none where no graph does that."""
        number = self._largest(chunk.room)
        graph = _Graph(number, self._plan.threads_for(1), chunk.num_tokens, checks=True)
        decoder = self._decoders.get(graph)
        has_adapter = chunk.seq.request.adapter is not None
        if decoder is None or has_adapter or self._largest(chunk.room - number):
            return ()
        inputs = self._inputs([chunk], later=number)
        places = np.arange(chunk.end - 1, chunk.end + number)
        inputs |= self._rotation.of(places, "check_")
        inputs["check_begins"] = np.array([0, number + 1], np.int32)
        logits = decoder.infer(inputs)
        draft = tuple(decoder.output(1)[0].tolist())
        self._passes.append(DraftPass((chunk,), number))
        self._checked = _Checked(chunk.seq, chunk.start, draft, logits)
        return draft

    def _tokens(self, chunks: list[Chunk], number: int) -> NDArray[np.int32]:
        """Draft tokens [chunks, number]."""
        threads = self._plan.threads_for(len(chunks))
        num_tokens = chunks[0].num_tokens if len(chunks) == 1 else 0
        single = self._decoders.get(_Graph(number, threads, num_tokens))
        decoder = single or self._decoders[_Graph(number, threads)]
        ids: NDArray[np.int32] = decoder.infer(self._inputs(chunks, later=number - 1))
        self._passes.append(DraftPass(tuple(chunks), number))
        return ids

    def _inputs(self, chunks: list[Chunk], *, later: int) -> Arrays:
        """Inputs of a graph with `later` steps after the first."""
        inputs = step_arrays(chunks, self._factory.block_size, more=later)
        inputs |= self._rotation.of(positions_of(chunks))
        inputs["rows"] = inputs["subsequence_begins"][1:] - 1
        return inputs | later_arrays(chunks, later, self._rotation) if later else inputs


def _after(chunk: Chunk, draft: tuple[int, ...]) -> Chunk:
    """The last draft token, as the newest token of what follows."""
    start, room = chunk.end - 1 + len(draft), chunk.room - len(draft)
    return Chunk(chunk.seq, start, 1, samples=True, draft=draft[-1:], room=room)
