"""Speculation between scheduling and running: who drafts how much, and the draft tokens themselves.

Contract: draft tokens never change an answer, only what it costs; without any a step is a plain
one. `num_drafts` and `draft` see the same choice of method within a step; `learn` comes between
steps. Everything runs on the engine thread.

Not covered: how draft tokens are checked (see `runner.readout`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from greenllm.core import (
    MOST_DRAFTED,
    Batch,
    Chunk,
    DraftPass,
    InvalidRequestError,
    Request,
    Sample,
    Speculation,
    SpeculativeMethod,
)
from greenllm.core import Sequence as TokenSequence
from greenllm.exits import EXIT_RUN
from greenllm.shape import ModelShape
from greenllm.speculation.controller import Arm, Controller, StepCost
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.prompt_lookup import look_up

log = logging.getLogger(__name__)

OFF = Speculation("off")
FEW = 2


def bounded(num_tokens: int, usual: int) -> int:
    """The number that is prepared for a request: the usual one, or a power of two below its own.

    What clients may ask for must not make a server compile without end.
    """
    return usual if num_tokens == usual else 1 << (num_tokens.bit_length() - 1)


def auto_counts(method: SpeculativeMethod, num_tokens: int) -> tuple[int, ...]:
    """The numbers of draft tokens that `auto` tries: few, the usual number, or twice that.

    Prompt lookup costs nothing per token, so it is only tried with many.
    """
    few, usual, many = min(FEW, num_tokens), num_tokens, min(2 * num_tokens, MOST_DRAFTED)
    counts = {"prompt_lookup": (many,), "draft_model": (usual, many)}
    return tuple(dict.fromkeys(counts.get(method, (few, usual))))


def arms(methods: Iterable[SpeculativeMethod], num_tokens: int) -> list[Speculation]:
    """What `auto` chooses from."""
    pairs = ((method, count) for method in methods for count in auto_counts(method, num_tokens))
    return [OFF, *(Speculation(method, count) for method, count in pairs)]


class PromptLookup:
    """Draft tokens from the sequence's own text."""

    shape: ModelShape | None = None
    passes: Sequence[DraftPass] = ()

    def prepare(self, num_tokens: int) -> None:
        """Nothing to prepare."""

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """See `Drafter`."""
        return [look_up(chunk.seq.token_ids, chunk.room) for chunk in chunks]


@dataclass(frozen=True, slots=True)
class Drafted:
    """The chunks that one drafter was asked about, with its draft, and how long it took."""

    shape: ModelShape | None
    chunks: tuple[Chunk, ...]
    duration_s: float
    passes: Sequence[DraftPass] = ()


class Speculator:
    """Asks drafters for draft tokens; requests that name no method use `default`.

    `hopeless` are methods that `auto` leaves out, and why; requests may still ask for them.
    """

    def __init__(
        self,
        drafters: Mapping[SpeculativeMethod, Drafter],
        default: Speculation = OFF,
        *,
        hopeless: Mapping[SpeculativeMethod, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.drafters = drafters
        self.default = default
        self.hopeless = dict(hopeless or {})
        self._clock = clock
        promising = [method for method in drafters if method not in self.hopeless]
        self._controller = Controller(arms(promising, default.num_tokens))
        self._batch_size = 0
        self._cheapest: Speculation | None = None
        self._failures: dict[SpeculativeMethod, int] = {}

    @property
    def methods(self) -> tuple[SpeculativeMethod, ...]:
        """What requests may ask for."""
        return ("off", "auto", *self.drafters)

    def check(self, request: Request) -> None:
        """Refuse a method that is not there; callable from any thread.

        Raises:
            InvalidRequestError: it is not in `methods`.
        """
        asked = request.speculation
        if asked is not None and asked.method not in self.methods:
            raise InvalidRequestError(
                f"speculative.method {asked.method} is not available here, but"
                f" {', '.join(self.methods)} (draft_model needs a server with --draft-model)",
                "speculative.method",
            )

    def prepare(self, speculation: Speculation) -> set[int]:
        """Do what its first draft would wait for; callable from any thread.

        Returns the numbers of draft tokens that there may be in a step.
        """
        counts: set[int] = set()
        for method, drafter in self.drafters.items():
            wanted = self._counts(speculation, method)
            for count in wanted:
                drafter.prepare(count)
            counts |= wanted
        return counts

    def _counts(self, speculation: Speculation, method: SpeculativeMethod) -> set[int]:
        """Numbers of draft tokens that a method may be asked for, for such a request."""
        usual = self.default.num_tokens
        if speculation.method == method:
            return {bounded(speculation.num_tokens, usual)}
        if speculation.method != "auto" or method in self.hopeless:
            return set()
        return set(auto_counts(method, usual))

    def choice(self, seq: TokenSequence) -> Speculation:
        """What is done for a sequence now; `auto` is what is cheapest for all of the batch."""
        if seq.exit is not None:
            return OFF
        asked = seq.request.speculation or self.default
        if asked.method != "auto":
            return asked
        if self._cheapest is None:
            self._cheapest = self._controller.choose(self._batch_size)
        return self._cheapest

    def begin(self, batch_size: int) -> None:
        """Say how many sequences the next step is likely to run."""
        self._batch_size = batch_size
        self._cheapest = None

    def learn(self, batch: Batch, samples: Sequence[Sample], duration_s: float) -> None:
        """Take what a step cost, where all it did was decode sequences on `auto`."""
        if not all(map(self._teaches, batch.chunks)):
            self._controller.skip(self._batch_size)
            return
        num_tokens = num_drafted = num_accepted = 0
        for chunk, sample in zip(batch.chunks, samples, strict=True):
            found = len(sample.token_ids)
            num_tokens += found
            if chunk.draft:
                num_drafted += len(chunk.draft)
                num_accepted += max(0, found - 1)
        step = StepCost(duration_s, num_tokens, num_drafted, num_accepted)
        self._controller.learn(self._batch_size, step)

    def _teaches(self, chunk: Chunk) -> bool:
        """Whether what a chunk costs is what `auto` chose for it."""
        asked = chunk.seq.request.speculation or self.default
        if asked.method != "auto" or chunk.seq.exit is not None:
            return False
        return chunk.samples and chunk.phase == "decode"

    def arms(self) -> dict[int, list[Arm]]:
        """What `auto` has seen, by size of batch; see `Controller.state`."""
        return self._controller.state()

    def num_drafts(self, seq: TokenSequence) -> int:
        """Draft tokens a sequence may get in the next step, or more tokens from its early exit."""
        if seq.exit is not None:
            return EXIT_RUN - 1 if seq.sampling.takes_the_best else 0
        choice = self.choice(seq)
        return 0 if choice.method == "off" else choice.num_tokens

    def draft(self, batch: Batch) -> tuple[Batch, list[Drafted]]:
        """The batch with draft tokens in place of room, and what was done for them."""
        asked: dict[SpeculativeMethod, list[int]] = {}
        for i, chunk in enumerate(batch.chunks):
            method = self.choice(chunk.seq).method if chunk.room else "off"
            if method != "off":
                asked.setdefault(method, []).append(i)
        if not asked:
            return batch, []
        chunks, done = list(batch.chunks), []
        for method, places in asked.items():
            is_whole = len(places) == len(chunks)
            drafted = self._ask(method, [chunks[i] for i in places], whole=is_whole)
            done.append(drafted)
            for i, chunk in zip(places, drafted.chunks, strict=True):
                chunks[i] = chunk
        return replace(batch, chunks=tuple(chunks)), done

    def _note_failure(self, method: SpeculativeMethod) -> None:
        """Log the 1st, 2nd, 4th, ... failure: one at every step would drown the log."""
        count = self._failures[method] = self._failures.get(method, 0) + 1
        if count & (count - 1) == 0:
            log.exception(
                "%s failed, %d times so far; steps go on without its draft tokens", method, count
            )

    def _ask(self, method: SpeculativeMethod, chunks: list[Chunk], *, whole: bool) -> Drafted:
        drafter, started_s = self.drafters[method], self._clock()
        try:
            drafts, passes = drafter.draft(chunks, whole=whole), drafter.passes
        except Exception:
            # Draft tokens are an extra: without them the step is a plain one.
            self._note_failure(method)
            drafts, passes = [()] * len(chunks), ()
        drafted = [chunk.with_draft(draft) for chunk, draft in zip(chunks, drafts, strict=True)]
        took_s = self._clock() - started_s
        return Drafted(drafter.shape, tuple(drafted), took_s, passes)
