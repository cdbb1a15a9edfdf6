"""Drafting one token after another in a runner's own steps, where there is no faster way.

Contract: see `Drafter`. A chunk may hold more than its sequence's newest token: what was not
computed before it. Draft tokens are greedy and made without adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from greenllm.core import Batch, Chunk, DraftPass, Request, Sample, SamplingParams, Sequence
from greenllm.shape import ModelShape

_GREEDY = Request("draft", (), SamplingParams(temperature=0), model="")


def plain(chunk: Chunk) -> Chunk:
    """The chunk as a greedy request without an adapter would run it; its tokens are a copy."""
    seq = chunk.seq
    copy = Sequence(
        request=_GREEDY,
        index=0,
        token_ids=list(seq.token_ids),
        prompt_len=seq.prompt_len,
        seed=0,
        eos_token_ids=frozenset(),
        max_len=sys.maxsize,
        block_table=seq.block_table,
    )
    return replace(chunk, seq=copy)


class StepByStep:
    """Asks a model, as costly as `shape` says, through steps that `run` takes."""

    def __init__(self, run: Callable[[Batch], list[Sample]], shape: ModelShape) -> None:
        self.shape: ModelShape | None = shape
        self.passes: SequenceOf[DraftPass] = ()
        self._run = run

    def prepare(self, num_tokens: int) -> None:
        """Nothing to prepare."""

    def draft(self, chunks: SequenceOf[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """As many tokens as there is room for; fewer where the model fails."""
        drafts: list[list[int]] = [[] for _ in chunks]
        passes: list[DraftPass] = []
        self.passes = passes
        current = {i: plain(chunk) for i, chunk in enumerate(chunks)}
        for made in range(max((chunk.room for chunk in chunks), default=0)):
            current = {i: chunk for i, chunk in current.items() if chunks[i].room > made}
            if not current:
                break
            samples = self._run(Batch(tuple(current.values())))
            ran = (replace(chunk, seq=chunks[i].seq) for i, chunk in current.items())
            passes.append(DraftPass(tuple(ran)))
            for (i, chunk), sample in zip(list(current.items()), samples, strict=True):
                drafts[i] += sample.token_ids
                chunk.seq.token_ids += sample.token_ids
                current[i] = Chunk(chunk.seq, chunk.end, 1, samples=True)
                if sample.error:
                    del current[i]
        return [tuple(ids) for ids in drafts]
