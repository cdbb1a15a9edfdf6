"""Continuous batching: which tokens of which sequences run in the next step.

Order of a step: every running sequence that only needs its newest token (decode), then unfinished
prompts in chunks, then new sequences while tokens, places and KV blocks last. A sequence gets the
blocks of its whole prompt when it is admitted; only decoding asks for more, and when none is free
the youngest running sequence is preempted: it loses its blocks, returns to the front of the queue
and is computed again, with what the prefix cache still remembers. Where a remembered block fits
only in part, that part is copied.

Places and blocks are shared among clients (see `fairness`). One that has less than its share of
them takes a place from the one that has most, whose youngest sequence is preempted for it.

A newcomer is admitted only while each running sequence could still get one more block, and never
in a step that had to preempt: otherwise the two would evict each other in turns.

A decoding sequence may also be given room for draft tokens after its newest token, as many as
`num_drafts` says; room never costs another sequence its place, its blocks or its turn.

Where an answer may be approximate, its newest token may leave the model early; nothing that is
computed after its prompt is shared. What such tokens left undone comes on top of the step's limit
of tokens when it is caught up with, at most `MOST_PENDING + EXIT_RUN` for a sequence.

What raises while one sequence is scheduled or advanced ends that sequence's request, and no other.

A sequence that does not fit may be overtaken by smaller ones, but not once it has waited
`max_overtaken_s`.

Not covered: swapping blocks to other memory. No torch, no HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from itertools import islice

from greenllm.core import Batch, Chunk, FinishReason, Sample, Sequence, Token
from greenllm.engine.answers import append_all
from greenllm.engine.blocks import ROOT, BlockManager
from greenllm.engine.fairness import Room, Shares, WaitingQueue, client_of, num_running
from greenllm.fence import fenced


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
        self._shares = Shares()
        self.waiting = WaitingQueue(self._shares)
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._clock = clock
        self._num_drafts = num_drafts
        self._copies: list[tuple[int, int]] = []
        self._failed: list[Token] = []

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
        self._shares.enter(client_of(seq.request))
        self.waiting.append(seq)

    def schedule(self) -> Batch:
        """Choose the next batch and reserve the blocks it writes to.

        The batch is empty where all that could run has failed; see `take_failed`.
        """
        chunks: list[Chunk] = []
        preemptions = self.num_preemptions
        for seq in [seq for seq in self.running if seq.in_decode]:
            if seq in self.running:
                chunks += self._fenced(seq, partial(self._decode, seq))
        may_admit = preemptions == self.num_preemptions
        if may_admit and self.waiting and (victims := self._make_place()):
            chunks = [chunk for chunk in chunks if chunk.seq not in victims]
        budget = self.max_batch_tokens - len(chunks)
        for seq in self._with_prompts(may_admit=may_admit) if budget else ():
            chunks.append(_next_chunk(seq, budget))
            budget -= chunks[-1].num_tokens
            if not budget:
                break
        chunks = [chunk for chunk in chunks if not chunk.seq.is_finished]
        for chunk in chunks:
            self._shares.charge(client_of(chunk.seq.request), chunk.num_tokens)
        self._give_room(chunks, budget)
        copies, self._copies = tuple(self._copies), []
        return Batch(tuple(chunk for chunk in chunks if not chunk.seq.is_finished), copies)

    def take_failed(self) -> list[Token]:
        """The last tokens of requests that failed while they were scheduled."""
        failed, self._failed = self._failed, []
        return failed

    def _fenced(self, seq: Sequence, work: Callable[[], list[Chunk]]) -> list[Chunk]:
        """The chunks of one sequence; none where its request fails, and ends, meanwhile."""
        return fenced(work, partial(self._fail, seq))

    def _fail(self, seq: Sequence, error: str) -> list[Chunk]:
        self._failed += self.abort(seq.request.request_id, "error", error)
        return []

    def _decode(self, seq: Sequence) -> list[Chunk]:
        """The newest token's chunk; none when the sequence had to yield."""
        return [_next_token(seq)] if self._reserve_next(seq) else []

    def _with_prompts(self, *, may_admit: bool) -> Iterator[Sequence]:
        """Sequences with a prompt to compute: running ones, then newcomers if any may come.

        A newcomer whose client has had less than that of the first prompt comes before it.
        """
        prompts = self._prompts()
        if may_admit and prompts and self.waiting:
            first = self.waiting.next(num_running(self.running))
            if self._shares.has_had_less(client_of(first.request), client_of(prompts[0].request)):
                yield from islice(self._admit(), 1)
        yield from prompts
        if may_admit:
            yield from self._admit()

    def _prompts(self) -> list[Sequence]:
        """Running sequences with a prompt to compute, in the order in which it is their turn."""
        prompts = [seq for seq in self.running if not seq.in_decode]
        if len(prompts) > 1 and self._shares.num_clients > 1:
            running = num_running(self.running)
            ranks = {client: self._shares.rank(client, running[client]) for client in running}
            prompts.sort(key=lambda seq: ranks[client_of(seq.request)])
        return prompts

    def _make_place(self) -> list[Sequence]:
        """Preempt for the next one in turn, if its client has less than its share."""
        count = num_running(self.running)
        if self._shares.num_clients < 2 or max(count.values(), default=0) < 2:
            return []
        seq = self.waiting.next(count)
        has_place = len(self.running) < self.max_num_seqs
        if _leader_computes(seq) or (has_place and self._fits(seq, self._shared(seq))):
            return []
        victims = self._shares.who_yields(seq, self.running, self._room())
        for victim in victims:
            self._preempt(victim)
        return victims

    def _room(self) -> Room:
        return Room(self.blocks, self.max_num_seqs)

    def _reserve_next(self, seq: Sequence) -> bool:
        """Make room for the newest token; False when the sequence itself had to yield."""
        if len(seq.token_ids) <= len(seq.block_table) * self.blocks.block_size:
            return True
        while not self.blocks.num_free:
            victim = self._shares.who_runs_out(seq, self.running, self._room())
            self._preempt(victim)
            if victim is seq:
                return False
        seq.block_table += self.blocks.allocate(1)
        return True

    def _give_room(self, chunks: list[Chunk], budget: int) -> None:
        """Share what prompts and newcomers have left of the step among decoding sequences."""
        for i, chunk in enumerate(chunks):
            if budget and chunk.seq.in_decode and _may_have_room(chunk):
                for roomy in self._fenced(chunk.seq, partial(self._with_room, chunk, budget)):
                    chunks[i] = roomy
                    budget -= roomy.room

    def _with_room(self, chunk: Chunk, budget: int) -> list[Chunk]:
        return [replace(chunk, room=self._reserve_room(chunk.seq, budget))]

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
        if len(self.running) >= self.max_num_seqs or not self.waiting:
            return
        now_s, running = self._clock(), num_running(self.running)
        for seq in self.waiting.in_turn(running):
            if len(self.running) >= self.max_num_seqs:
                return
            if seq.is_finished or _leader_computes(seq):
                continue
            if fenced(partial(self._try_admit, seq), partial(self._fail, seq)):
                running[client_of(seq.request)] += 1
                yield seq
            elif not seq.is_finished and now_s - seq.queued_s >= self.max_overtaken_s:
                return

    def _shared(self, seq: Sequence) -> list[int]:
        """Remembered blocks that it can use; a scored prompt is computed as a whole."""
        if seq.sampling.prompt_logprobs is not None:
            return []
        return self.blocks.match(seq.token_ids, salt=_salt(seq))

    def _fits(self, seq: Sequence, shared: SequenceOf[int]) -> bool:
        """Whether there are blocks for it, and one more for each running sequence."""
        fresh = self.blocks.blocks_for(len(seq.token_ids)) - len(shared)
        return fresh + len(self.running) <= self.blocks.num_free_after(shared)

    def _try_admit(self, seq: Sequence) -> bool:
        shared = self._shared(seq)
        if not self._fits(seq, shared):
            return False
        fresh = self.blocks.blocks_for(len(seq.token_ids)) - len(shared)
        scored = seq.sampling.prompt_logprobs is not None
        self.blocks.take(shared)
        seq.block_table = shared
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
        self.waiting.discard((seq,))
        self.running.append(seq)
        return True

    def _part_of(self, seq: Sequence) -> tuple[int, int] | None:
        """A block to copy the next tokens' keys and values from, and how many they are.

        The block may be evicted for this very sequence: copies come before anything is written.
        """
        return self.blocks.match_part(seq.token_ids[seq.num_computed :], seq.digest)

    def commit(self, batch: Batch, samples: SequenceOf[Sample]) -> list[Token]:
        """Take the runner's results: advance, append, finish. Returns the tokens to send.

        An error, in a sample or in what is done with it here, ends all sequences of its request
        with reason `error`.
        """
        tokens: list[Token] = []
        for chunk, sample in zip(batch.chunks, samples, strict=True):
            if chunk.seq.is_finished:
                continue  # a sibling's error has ended it
            end = partial(self.abort, chunk.seq.request.request_id, "error")
            if sample.error:
                tokens += end(sample.error)
            else:
                tokens += fenced(partial(self._advance, chunk, sample), end)
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
        self._shares.leave(client_of(seq.request))

    def abort(
        self, request_id: str, reason: FinishReason = "abort", error: str = ""
    ) -> list[Token]:
        """End a request's sequences wherever they are; what they computed stays on their bill.

        Each ends with a token that carries `error`.
        """
        waiting = [seq for seq in self.waiting if _belongs(seq, request_id)]
        running = [seq for seq in self.running if _belongs(seq, request_id)]
        ended = [*running, *waiting]
        self.waiting.discard(waiting)
        self.running = [seq for seq in self.running if seq not in running]
        for seq in ended:
            seq.finish_reason = reason
            self._release(seq)
            self._shares.leave(client_of(seq.request))
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
