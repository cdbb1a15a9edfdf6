"""Speculation between scheduling and running: who guesses how much, and the guesses themselves.

Contract: guesses never change tokens, only what they cost; a drafter that has none runs a plain
step. `num_drafts` and `draft` see the same choice of method within a step; `learn` comes between
steps. Everything runs on the engine thread.

Not covered: how guesses are checked (see `runner.readout`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from greenllm.core import Batch, Chunk, Speculation, SpeculativeMethod
from greenllm.core import Sequence as TokenSequence
from greenllm.decode.prompt_lookup import look_up
from greenllm.runner.base import Drafter
from greenllm.shape import ModelShape

OFF = Speculation("off")


class PromptLookup:
    """Guesses from the sequence's own text."""

    shape: ModelShape | None = None

    def prepare(self, num_tokens: int) -> None:
        """Nothing to prepare."""

    def draft(self, chunks: Sequence[Chunk]) -> list[tuple[int, ...]]:
        """See `base.Drafter`."""
        return [look_up(chunk.seq.token_ids, chunk.room) for chunk in chunks]


@dataclass(frozen=True, slots=True)
class Drafted:
    """The chunks that one drafter was asked about, with its guesses, and how long it took."""

    method: SpeculativeMethod
    shape: ModelShape | None
    chunks: tuple[Chunk, ...]
    duration_s: float


class Speculator:
    """Asks drafters for guesses; requests that do not say use `default`."""

    def __init__(
        self,
        drafters: Mapping[SpeculativeMethod, Drafter],
        default: Speculation = OFF,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.drafters = drafters
        self.default = default
        self._clock = clock

    def choice(self, seq: TokenSequence) -> Speculation:
        """What is done for a sequence now."""
        return seq.request.speculation or self.default

    def num_drafts(self, seq: TokenSequence) -> int:
        """Guesses that a sequence may be given in the next step."""
        choice = self.choice(seq)
        return 0 if choice.method == "off" else choice.num_tokens

    def draft(self, batch: Batch) -> tuple[Batch, list[Drafted]]:
        """The batch with guesses in place of room, and what was done for them."""
        asked: dict[SpeculativeMethod, list[int]] = {}
        for i, chunk in enumerate(batch.chunks):
            if chunk.room:
                asked.setdefault(self.choice(chunk.seq).method, []).append(i)
        if not asked:
            return batch, []
        chunks, done = list(batch.chunks), []
        for method, places in asked.items():
            drafted = self._ask(method, [chunks[i] for i in places])
            done.append(drafted)
            for i, chunk in zip(places, drafted.chunks, strict=True):
                chunks[i] = chunk
        return replace(batch, chunks=tuple(chunks)), done

    def _ask(self, method: SpeculativeMethod, chunks: list[Chunk]) -> Drafted:
        drafter, started_s = self.drafters[method], self._clock()
        guesses = drafter.draft(chunks)
        drafted = [chunk.with_draft(guess) for chunk, guess in zip(chunks, guesses, strict=True)]
        return Drafted(method, drafter.shape, tuple(drafted), self._clock() - started_s)
