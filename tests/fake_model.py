"""A model without weights, for tests that need an engine and no tokens of any worth."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

from greenllm.core import AdapterRef, Batch, Chunk, Sample, Sequence, TokenLogprob
from greenllm.model.info import LoadError, ModelInfo
from greenllm.runner.base import AdapterSource
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter

VOCABULARY = 8
EOS = 0
CONTEXT = 64
Slot = tuple[str | None, int, int]
_INFO = ModelInfo(
    name="fake",
    source="fake",
    architecture="Hash",
    parameters=1500,
    weight_bytes=6000,
    quantization="none",
    dtype="float32",
    device="cpu",
    context_length=CONTEXT,
    vocab_size=VOCABULARY,
    eos_token_ids=frozenset({EOS}),
)


def next_token(adapter: AdapterRef | None, seed: int, context: SequenceOf[int]) -> int:
    """The fake model: a hash of everything before."""
    return zlib.crc32(repr((adapter, seed, *context)).encode()) % VOCABULARY


def score(context: SequenceOf[int], token_id: int) -> TokenLogprob:
    """The fake model's log probability of a prompt token."""
    return TokenLogprob(token_id, -(zlib.crc32(repr((*context, token_id)).encode()) % 1000) / 100)


def digest(seq: Sequence) -> str | None:
    """The content of a sequence's adapter, whatever it is called."""
    adapter = seq.request.adapter
    return None if adapter is None else adapter.digest


class FakeRunner:
    """Keeps a KV cache of (adapter, position, token), and fails when it reads what is not its own.

    `on_run` sees every batch first, and may raise; `facts` are fields of its `ModelInfo`.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        on_run: Callable[[Batch], None] | None = None,
        **facts: Any,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.shape = ModelShape(1000, 500, 2, 8, 64)
        known = {"context_length": min(CONTEXT, num_blocks * block_size), **facts}
        self.info = replace(_INFO, **known)
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
                self._memory[slot] = (digest(chunk.seq), position, token_id)
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
        ids = chunk.seq.token_ids[: chunk.start] + chunk.token_ids
        want = [(digest(chunk.seq), place, token_id) for place, token_id in enumerate(ids)]
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
            found.append(self.choose(seq, context[:place]))
            if found[-1] != (*context, None)[place]:
                break
        wanted = seq.sampling.logprobs is not None
        logprobs = tuple(self.logprob(seq, token_id) for token_id in found if wanted)
        return Sample(tuple(found), logprobs, scored)

    def choose(self, seq: Sequence, context: SequenceOf[int]) -> int:
        """The token after a context."""
        return next_token(seq.request.adapter, seq.seed, context)

    def logprob(self, seq: Sequence, token_id: int) -> TokenLogprob:
        """What is reported of a chosen token."""
        return TokenLogprob(token_id, -1.0)
