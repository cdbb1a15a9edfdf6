"""Continuous batching: which tokens of which sequences run in the next step.

Order of a step: every running sequence that only needs its newest token (decode), then unfinished
prompts in chunks, then new sequences while tokens, places and KV blocks last. A sequence gets the
blocks of its whole prompt when it is admitted; only decoding asks for more, and when none is free
the youngest running sequence is preempted: it loses its blocks, returns to the front of the queue
and is computed again, with what the prefix cache still remembers. Where a remembered block fits
only in part, that part is copied.

A newcomer is admitted only while each running sequence could still get one more block, and never
in a step that had to preempt: otherwise the two would evict each other in turns.

A decoding sequence may also be given room for draft tokens after its newest token, as many as
`num_drafts` says; room never costs another sequence its place, its blocks or its turn.

Where an answer may be approximate, its newest token may leave the model early; nothing that is
computed after its prompt is shared. What such tokens left undone comes on top of the step's limit
of tokens when it is caught up with, at most `MOST_PENDING + EXIT_RUN` for a sequence.

Waiting is first come, first served with aging: a sequence that does not fit may be overtaken by
smaller ones, but not once it has waited `max_overtaken_s`.

Not covered: priorities between clients, swapping blocks to other memory. No torch, no HTTP.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from itertools import zip_longest

from greenllm.core import (
    Batch,
    Chunk,
    Event,
    FinishReason,
    Sample,
    Sequence,
    Token,
    TokenLogprob,
)
from greenllm.engine.blocks import ROOT, BlockManager


class Scheduler:
    """Owns the queues and the block tables of all sequences."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_batch_tokens: int,
        clock: Callable[[], float],
        max_overtaken_s: float = 1.0,
        num_drafts: Callable[[Sequence], int] = lambda seq: 0,
    ) -> None:
        if max_batch_tokens < max_num_seqs:
            raise ValueError("max_batch_tokens must be at least max_num_seqs")
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.max_overtaken_s = max_overtaken_s
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._clock = clock
        self._num_drafts = num_drafts
        self._copies: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything."""
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ValueError: it could not fit even alone.
        """
        if self.blocks.blocks_for(seq.max_len) > self.blocks.num_blocks:
            raise ValueError(f"{seq.max_len} tokens exceed the KV cache")
        seq.queued_s = self._clock()
        self.waiting.append(seq)

    def schedule(self) -> Batch:
        """Choose the next batch and reserve the blocks it writes to."""
        chunks: list[Chunk] = []
        preemptions = self.num_preemptions
        for seq in [seq for seq in self.running if seq.in_decode]:
            if seq in self.running and self._reserve_next(seq):
                chunks.append(_next_token(seq))
        budget = self.max_batch_tokens - len(chunks)
        for seq in self.running:
            if budget and not seq.in_decode:
                chunks.append(_next_chunk(seq, budget))
                budget -= chunks[-1].num_tokens
        may_admit = budget > 0 and preemptions == self.num_preemptions
        for seq in self._admit() if may_admit else ():
            chunks.append(_next_chunk(seq, budget))
            budget -= chunks[-1].num_tokens
            if not budget:
                break
        self._give_room(chunks, budget)
        copies, self._copies = tuple(self._copies), []
        return Batch(tuple(chunks), copies)

    def _reserve_next(self, seq: Sequence) -> bool:
        """Make room for the newest token; False when the sequence itself had to yield."""
        if len(seq.token_ids) <= len(seq.block_table) * self.blocks.block_size:
            return True
        while not self.blocks.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        seq.block_table += self.blocks.allocate(1)
        return True

    def _give_room(self, chunks: list[Chunk], budget: int) -> None:
        """Share what prompts and newcomers have left of the step among decoding sequences."""
        for i, chunk in enumerate(chunks):
            if budget and chunk.seq.in_decode and _may_have_room(chunk):
                room = self._reserve_room(chunk.seq, budget)
                if room:
                    chunks[i] = replace(chunk, room=room)
                    budget -= room

    def _reserve_room(self, seq: Sequence, budget: int) -> int:
        """Make room for draft tokens after the newest one, as far as no other needs it."""
        wanted = min(self._num_drafts(seq), budget, seq.max_len - len(seq.token_ids) - 1)
        if wanted <= 0:
            return 0
        blocks = self.blocks
        more = blocks.blocks_for(len(seq.token_ids) + wanted) - len(seq.block_table)
        more = min(more, blocks.num_free - len(self.running))
        if more > 0:
            seq.block_table += blocks.allocate(more)
        return min(wanted, len(seq.block_table) * blocks.block_size - len(seq.token_ids))

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        self.waiting.appendleft(seq)
        self.num_preemptions += 1

    def _release(self, seq: Sequence) -> None:
        self.blocks.free(seq.block_table)
        seq.block_table = []
        seq.num_computed = seq.num_remembered = seq.draft_computed = 0
        if seq.exit is not None:
            seq.exit.forget()
        seq.digest = ROOT

    def _admit(self) -> Iterator[Sequence]:
        """Move sequences from waiting to running, in order, one for each that is asked for."""
        now_s = self._clock()
        for seq in list(self.waiting):
            if len(self.running) >= self.max_num_seqs:
                return
            if _leader_computes(seq):
                continue
            if self._try_admit(seq):
                yield seq
            elif now_s - seq.queued_s >= self.max_overtaken_s:
                return

    def _try_admit(self, seq: Sequence) -> bool:
        scored = seq.sampling.prompt_logprobs is not None
        shared = [] if scored else self.blocks.match(seq.token_ids, salt=_salt(seq))
        fresh = self.blocks.blocks_for(len(seq.token_ids)) - len(shared)
        if fresh + len(self.running) > self.blocks.num_free_after(shared):
            return False
        self.blocks.take(shared)
        seq.num_computed = len(shared) * self.blocks.block_size
        seq.num_remembered = len(shared)
        seq.digest = self.blocks.digest_of(shared[-1]) if shared else _salt(seq)
        part = None if scored else self._part_of(seq)
        seq.block_table = shared + self.blocks.allocate(fresh)
        if part is not None:
            source, count = part
            self._copies.append((source, seq.block_table[len(shared)]))
            seq.num_computed += count
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed
        self.waiting.remove(seq)
        self.running.append(seq)
        return True

    def _part_of(self, seq: Sequence) -> tuple[int, int] | None:
        """A block to copy the next tokens' keys and values from, and how many they are.

        The block may be evicted for this very sequence: copies come before anything is written.
        """
        return self.blocks.match_part(seq.token_ids[seq.num_computed :], seq.digest)

    def commit(self, batch: Batch, samples: SequenceOf[Sample]) -> list[Token]:
        """Take the runner's results: advance, append, finish. Returns the tokens to send.

        An error ends all sequences of its request with reason `error`.
        """
        tokens: list[Token] = []
        for chunk, sample in zip(batch.chunks, samples, strict=True):
            if chunk.seq.is_finished:
                continue  # a sibling's error has ended it
            if sample.error:
                tokens += self.abort(chunk.seq.request.request_id, "error", sample.error)
            else:
                tokens += self._advance(chunk, sample)
        return tokens

    def _advance(self, chunk: Chunk, sample: Sample) -> list[Token]:
        seq = chunk.seq
        if sample.prompt:
            seq.prompt_logprobs[chunk.start :] = sample.prompt
        tokens = append_all(seq, sample) if chunk.samples else []
        num_accepted = min(len(tokens), len(sample.token_ids) - 1) if chunk.draft else 0
        seq.num_drafted += len(chunk.draft)
        seq.num_accepted += num_accepted
        # What was computed for rejected draft tokens is written over in the next step.
        seq.num_computed = chunk.end - len(chunk.draft) + num_accepted
        if seq.exit is not None and chunk.exit is not None:
            seq.num_computed = chunk.start + len(sample.token_ids)
            seq.exit.settle(sample.exit, len(sample.token_ids), len(tokens))
        self._remember(seq)
        if seq.is_finished:
            self._retire(seq)
        return tokens

    def _remember(self, seq: Sequence) -> None:
        full = _shareable(seq) // self.blocks.block_size
        if full > seq.num_remembered:
            seq.digest = self.blocks.remember(
                seq.token_ids[: full * self.blocks.block_size],
                seq.block_table,
                first=seq.num_remembered,
                parent=seq.digest,
            )
            seq.num_remembered = full

    def _retire(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)

    def abort(
        self, request_id: str, reason: FinishReason = "abort", error: str = ""
    ) -> list[Token]:
        """End a request's sequences wherever they are; what they computed stays on their bill.

        Each ends with a token that carries `error`.
        """
        ended = [seq for seq in (*self.running, *self.waiting) if _belongs(seq, request_id)]
        self.waiting = deque(seq for seq in self.waiting if not _belongs(seq, request_id))
        for seq in ended:
            seq.finish_reason = reason
            if seq in self.running:
                self._retire(seq)
        return [
            Token(request_id, seq.index, None, finish_reason=reason, error=error) for seq in ended
        ]


def _belongs(seq: Sequence, request_id: str) -> bool:
    return seq.request.request_id == request_id


def _salt(seq: Sequence) -> bytes:
    """Keys and values depend on the adapter's content, and tenants must not find each other's."""
    adapter, salt = seq.request.adapter, seq.request.cache_salt
    if adapter is None and salt is None:
        return ROOT
    digest = "" if adapter is None else adapter.digest
    return hashlib.blake2b(f"{digest}\0{salt or ''}".encode(), digest_size=16).digest()


def _leader_computes(seq: Sequence) -> bool:
    """Whether the sibling with the same prompt has still to compute it."""
    leader = seq.leader
    return leader is not None and not leader.is_finished and leader.num_computed < leader.prompt_len


def _may_have_room(chunk: Chunk) -> bool:
    """Whether a decoding chunk may go beyond its token; where it must not exit, it does not."""
    return chunk.may_exit or chunk.seq.exit is None


def _shareable(seq: Sequence) -> int:
    """Tokens whose keys and values others may use; those after an early exit are not complete."""
    if seq.exit is None:
        return seq.num_computed
    return min(seq.num_computed, seq.prompt_len)


def _next_token(seq: Sequence) -> Chunk:
    """The newest token of a decoding sequence, which may leave the model early."""
    chunk = _next_chunk(seq, 1)
    return chunk if seq.exit is None else replace(chunk, exit=seq.exit.offer())


def _next_chunk(seq: Sequence, budget: int) -> Chunk:
    num_tokens = min(budget, len(seq.token_ids) - seq.num_computed)
    samples = seq.num_computed + num_tokens == len(seq.token_ids)
    return Chunk(seq, seq.num_computed, num_tokens, samples)


def append_all(seq: Sequence, sample: Sample) -> list[Token]:
    """Add the sampled tokens to their sequence, up to the one that ends it."""
    if not sample.token_ids:
        return [_append(seq, None, None)]
    tokens: list[Token] = []
    for token_id, logprob in zip_longest(sample.token_ids, sample.logprobs):
        tokens.append(_append(seq, token_id, logprob))
        if seq.is_finished:
            break
    return tokens


def _append(seq: Sequence, token_id: int | None, logprob: TokenLogprob | None) -> Token:
    """Add a token to its sequence and decide whether the sequence ends."""
    events: tuple[Event, ...] = ()
    if token_id is not None:
        seq.token_ids.append(token_id)
        seq.output_counts[token_id] = seq.output_counts.get(token_id, 0) + 1
        if seq.mask is not None:
            seq.mask.push(token_id)
        if _ends_by_id(seq, token_id):
            seq.finish_reason = "stop"
        elif seq.text is not None:
            events = seq.text.push(token_id)
            if seq.text.stopped:
                seq.finish_reason = "stop"
    if seq.finish_reason is None and len(seq.token_ids) >= seq.max_len:
        seq.finish_reason = "length"
    if seq.is_finished and seq.text is not None:
        events += seq.text.flush()
        seq.finish_reason = "stop" if seq.text.stopped else seq.finish_reason
    first = seq.num_generated <= 1
    return Token(
        request_id=seq.request.request_id,
        index=seq.index,
        token_id=token_id,
        events=events,
        logprob=logprob,
        finish_reason=seq.finish_reason,
        prompt_logprobs=tuple(seq.prompt_logprobs) if first else (),
    )


def _ends_by_id(seq: Sequence, token_id: int) -> bool:
    if token_id in seq.sampling.stop_token_ids:
        return seq.num_generated >= seq.sampling.min_tokens
    is_eos = token_id in seq.eos_token_ids and not seq.sampling.ignore_eos
    return is_eos and seq.num_generated >= seq.sampling.min_tokens
