"""A model without weights, and the parts around it; everything here is deterministic.

Tests get the helpers as fixtures, session-wide where they hold no state, so that Hypothesis may
use them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

import pytest

from greenllm.core import (
    AdapterRef,
    Batch,
    Chunk,
    FinishReason,
    Request,
    Sample,
    SamplingParams,
    TokenLogprob,
    sequences_of,
)
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.grid import Intensity, StaticIntensity
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.adapters import AdapterRegistry
from greenllm.model.info import LoadError, ModelInfo
from greenllm.runner.base import AdapterSource, Runner
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import Speculator
from greenllm.text import TextStream

VOCABULARY = 8
EOS = 0
CONTEXT = 64
Slot = tuple[AdapterRef | None, int, int]


def next_token(adapter: AdapterRef | None, seed: int, context: SequenceOf[int]) -> int:
    """The fake model: a hash of everything before."""
    return zlib.crc32(repr((adapter, seed, *context)).encode()) % VOCABULARY


def score(context: SequenceOf[int], token_id: int) -> TokenLogprob:
    """The fake model's log probability of a prompt token."""
    return TokenLogprob(token_id, -(zlib.crc32(repr((*context, token_id)).encode()) % 1000) / 100)


class FakeRunner:
    """Keeps a KV cache of (adapter, position, token), and fails when it reads what is not its own.

    `on_run` sees every batch first, and may raise.
    """

    def __init__(
        self, num_blocks: int, block_size: int, on_run: Callable[[Batch], None] | None
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.shape = ModelShape(1000, 500, 2, 8, 64)
        self.info = ModelInfo(
            name="fake",
            source="fake",
            architecture="Hash",
            parameters=1500,
            weight_bytes=6000,
            quantization="none",
            dtype="float32",
            device="cpu",
            context_length=min(CONTEXT, num_blocks * block_size),
            vocab_size=VOCABULARY,
            eos_token_ids=frozenset({EOS}),
        )
        self.lora_targets: Mapping[str, tuple[int, int]] = {"layers.0.q_proj": (4, 4)}
        self.source: AdapterSource | None = None
        self.prepared: list[str] = []
        self.checks: list[int] = []
        self.exits: list[int] = []
        self._on_run = on_run
        self._memory: dict[int, Slot] = {}

    def use_adapters(self, source: AdapterSource) -> None:
        self.source = source

    def prepare_adapter(self, digest: str) -> None:
        self.prepared.append(digest)

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        self.plan = plan

    def prepare_check(self, num_tokens: int) -> None:
        self.checks.append(num_tokens)

    def prepare_exit(self, layer: int) -> None:
        self.exits.append(layer)

    def early_exit(self, layer: int) -> Drafter:
        raise LoadError("the fake model has no layers")

    def as_drafter(self) -> Drafter:
        raise LoadError("the fake model drafts for nobody")

    def run(self, batch: Batch) -> list[Sample]:
        if self._on_run is not None:
            self._on_run(batch)
        written: set[int] = set()
        for chunk in batch.chunks:
            for position in range(chunk.start, chunk.end):
                slot = self._slot(chunk, position)
                assert slot not in written, "two chunks write to one place"
                written.add(slot)
                token_id = chunk.token_ids[position - chunk.start]
                self._memory[slot] = (chunk.seq.request.adapter, position, token_id)
        return [self._sample(chunk) for chunk in batch.chunks]

    def copy_blocks(self, copies: SequenceOf[tuple[int, int]]) -> None:
        for source, target in copies:
            for offset in range(self.block_size):
                from_slot, to_slot = (b * self.block_size + offset for b in (source, target))
                self._memory[to_slot] = self._memory[from_slot]

    def scribble(self, chunk: Chunk) -> None:
        """Write into a chunk's room, as drafters do."""
        for position in range(chunk.end, chunk.end + chunk.room):
            self._memory[self._slot(chunk, position)] = (None, position, VOCABULARY)

    def _slot(self, chunk: Chunk, position: int) -> int:
        block = chunk.seq.block_table[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def _context(self, chunk: Chunk) -> list[int]:
        """What attention would see, read through the block table."""
        found = [self._memory[self._slot(chunk, position)] for position in range(chunk.end)]
        adapter = chunk.seq.request.adapter
        ids = chunk.seq.token_ids[: chunk.start] + chunk.token_ids
        want = [(adapter, place, token_id) for place, token_id in enumerate(ids)]
        assert found == want, "the KV cache holds somebody else's tokens"
        return [token_id for _, _, token_id in found]

    def _sample(self, chunk: Chunk) -> Sample:
        seq, context = chunk.seq, self._context(chunk)
        scored: tuple[TokenLogprob, ...] = ()
        if seq.sampling.prompt_logprobs is not None:
            places = range(chunk.start + 1, min(chunk.end, seq.prompt_len - 1) + 1)
            scored = tuple(score(seq.token_ids[:at], seq.token_ids[at]) for at in places)
        if not chunk.samples or len(seq.token_ids) >= seq.max_len:
            return Sample(prompt=scored)
        found: list[int] = []
        first = len(context) - len(chunk.draft)
        for place in range(first, len(context) + 1):
            found.append(next_token(seq.request.adapter, seq.seed, context[:place]))
            if found[-1] != (*context, None)[place]:
                break
        wanted = seq.sampling.logprobs is not None
        logprobs = tuple(TokenLogprob(token_id, -1.0) for token_id in found if wanted)
        return Sample(tuple(found), logprobs, scored)


@pytest.fixture(scope="session")
def make_runner() -> Callable[..., Runner]:
    """Builds the fake model."""

    def make(
        num_blocks: int = 32,
        block_size: int = 4,
        on_run: Callable[[Batch], None] | None = None,
    ) -> Runner:
        return FakeRunner(num_blocks, block_size, on_run)

    return make


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Request]:
    """Builds a request from prompts and sampling options; seeded, so that it can be repeated."""

    def make(
        request_id: str,
        *prompts: SequenceOf[int],
        adapter: str | None = None,
        **sampling: Any,
    ) -> Request:
        return Request(
            request_id=request_id,
            prompts=tuple(tuple(prompt) for prompt in prompts),
            sampling=SamplingParams(**{"seed": 1, "max_tokens": 8, **sampling}),
            model="fake",
            adapter=None if adapter is None else AdapterRef(adapter, f"digest of {adapter}"),
        )

    return make


Alone = tuple[list[int], FinishReason, tuple[TokenLogprob, ...]]


@pytest.fixture(scope="session")
def alone() -> Callable[[Request], list[Alone]]:
    """What each sequence gets with nobody else around: tokens, reason, prompt scores."""

    def run(request: Request) -> list[Alone]:
        sequences = sequences_of(request, eos_token_ids=frozenset({EOS}), max_len=CONTEXT)
        return [_alone(request, seq.token_ids, seq.seed, seq.max_len) for seq in sequences]

    return run


def _alone(request: Request, prompt: SequenceOf[int], seed: int, max_len: int) -> Alone:
    params, tokens, reason = request.sampling, list(prompt), "length"
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    while len(tokens) < max_len and reason == "length":
        tokens.append(next_token(request.adapter, seed, tokens))
        if tokens[-1] in ends and len(tokens) - len(prompt) >= params.min_tokens:
            reason = "stop"
    scored = params.prompt_logprobs is not None
    scores = [score(prompt[:at], prompt[at]) for at in range(1, len(prompt)) if scored]
    return tokens[len(prompt) :], "stop" if reason == "stop" else "length", tuple(scores)


@pytest.fixture(scope="session")
def letters() -> Callable[[SamplingParams], TextStream]:
    """A tokenizer whose ids are the letters from `a` on."""

    def stream(params: SamplingParams) -> TextStream:
        return TextStream(
            lambda token_id: chr(ord("a") + token_id),
            lambda ids: "?" * len(ids),
            stop=params.stop,
            min_tokens=params.min_tokens,
        )

    return stream


class SteadyMeter:
    """Ten watts, two of them idle."""

    method = "measured:fake"
    measured = True
    period_s = 0.0
    uncertainty = 0.05
    idle_w: Mapping[str, float] | None = {"cpu": 2.0}

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def read(self) -> Reading:
        now_s = self._clock()
        return Reading(now_s, {"cpu": 10.0 * now_s})


@pytest.fixture(scope="session")
def ticking() -> Callable[[float], Callable[[], float]]:
    """Builds a clock that moves on by so many seconds whenever it is read."""

    def make(tick_s: float) -> Callable[[], float]:
        ticks = itertools.count()
        return lambda: next(ticks) * tick_s

    return make


@pytest.fixture(scope="session")
def make_engine(
    make_runner: Callable[..., Runner],
    letters: Callable[[SamplingParams], TextStream],
    ticking: Callable[[float], Callable[[], float]],
) -> Callable[..., NativeEngine]:
    """Builds an engine around the fake model, a steady meter and a ticking clock."""

    def make(
        runner: Runner | None = None,
        *,
        meter: Callable[[Callable[[], float]], Meter] = SteadyMeter,
        tick_s: float = 0.01,
        adapters: AdapterRegistry | None = None,
        speculator: Speculator | None = None,
        **limits: Any,
    ) -> NativeEngine:
        runner, clock = runner or make_runner(), ticking(tick_s)
        account = Account(meter(clock), runner.shape, clock=clock)
        account.start_serving()
        source = StaticIntensity(Intensity(360.0, "XX", "Nowhere", 2025, "test", "none"))
        return NativeEngine(
            runner,
            account,
            CarbonPolicy(source),
            text_stream=letters,
            clock=clock,
            limits=BatchLimits(**limits),
            adapters=adapters,
            speculator=speculator,
        )

    return make
