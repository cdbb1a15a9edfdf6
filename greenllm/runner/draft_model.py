"""Draft tokens by a smaller model of the same vocabulary, with keys and values of its own.

Contract: see `Drafter`. The draft model's cache has the target's number and size of blocks, and a
sequence's block table names its blocks in both. What the draft model has not seen of a sequence it
computes first, in steps of up to 512 tokens, one step for each call: a sequence gets no draft until
that is done, and none where the draft model's context ends.

Adapters change the target only; the target checks a draft with its adapter. Prompt beginnings that
the target's prefix cache remembers are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from greenllm.core import Batch, Chunk, DraftPass
from greenllm.core import Sequence as TokenSequence
from greenllm.model.info import LoadError
from greenllm.model.options import resolve
from greenllm.runner.base import Runner
from greenllm.runner.stepwise import plain
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter
from greenllm.tokenizer import Tokenizer, TokenizerError, load_tokenizer

_CATCH_UP = 512
# So few unseen tokens run together with the newest.
_FEW = 8


@dataclass(frozen=True, slots=True)
class _Made:
    """A sequence's draft at the place `start`; all of its tokens but the last were computed."""

    seq: TokenSequence
    start: int
    draft: tuple[int, ...]


class DraftModel:
    """A runner that drafts for another; `drafter` asks its model, all layers of it."""

    def __init__(self, runner: Runner, drafter: Drafter) -> None:
        self.runner = runner
        self.shape: ModelShape | None = runner.shape
        self.passes: Sequence[DraftPass] = ()
        self._drafter = drafter
        self._made: dict[int, _Made] = {}

    def prepare(self, num_tokens: int) -> None:
        """See `Drafter`."""
        self._drafter.prepare(num_tokens)

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """See `Drafter`; none for sequences that the draft model has yet to read."""
        made, self._made = self._made, {}
        behind = [_unseen(chunk, made.get(id(chunk.seq))) for chunk in chunks]
        self.passes = passes = self._catch_up(behind)
        asked = {}
        for i, chunk in enumerate(chunks):
            room = min(chunk.room, self.runner.info.context_length - chunk.start)
            start = chunk.seq.draft_computed
            if room > 0 and chunk.end - start <= _FEW:
                asked[i] = replace(chunk, start=start, num_tokens=chunk.end - start, room=room)
        drafts: list[tuple[int, ...]] = [()] * len(chunks)
        found = self._drafter.draft(list(asked.values()))
        self.passes = [*passes, *self._drafter.passes]
        for i, draft in zip(asked, found, strict=True):
            drafts[i] = draft
            if draft:
                seq, end = chunks[i].seq, chunks[i].end
                seq.draft_computed = end
                self._made[id(seq)] = _Made(seq, end, draft)
        return drafts

    def _catch_up(self, behind: list[Chunk]) -> list[DraftPass]:
        """Read what was not seen, as much as one step may hold; returns what ran."""
        budget = _CATCH_UP
        step: list[Chunk] = []
        for chunk in behind:
            most = min(budget, chunk.num_tokens, self.runner.info.context_length - chunk.start)
            if most > 0 and chunk.num_tokens >= _FEW:
                step.append(replace(chunk, num_tokens=most))
                budget -= most
        if step:
            self.runner.run(Batch(tuple(map(plain, step))))
        for chunk in step:
            chunk.seq.draft_computed = chunk.end
        return [DraftPass(tuple(step))] if step else []


def _unseen(chunk: Chunk, made: _Made | None) -> Chunk:
    """What the draft model has not computed before the newest token, accepted draft tokens aside.

    A sequence that lost its blocks meanwhile has lost what was computed in them.
    """
    seq = chunk.seq
    if made is not None and made.seq is seq and seq.draft_computed == made.start:
        news = seq.token_ids[made.start : chunk.start]
        for drafted, token_id in zip(made.draft[:-1], news, strict=False):
            if drafted != token_id:
                break
            seq.draft_computed += 1
    seen = seq.draft_computed
    return Chunk(seq, seen, chunk.start - seen, samples=False)


def check_same_vocabulary(target: str, draft: str, *, trust_remote_code: bool = False) -> None:
    """Make sure that ids mean the same to the tokenizers of two models, by their names or folders.

    Raises:
        LoadError: they do not, or one has no tokenizer.
    """
    try:
        ours, theirs = (
            load_tokenizer(resolve(name), trust_remote_code=trust_remote_code)
            for name in (target, draft)
        )
    except TokenizerError as error:
        raise LoadError(f"--draft-model {draft}: {error}") from error
    for token_id in range(max(ours.vocab_size, theirs.vocab_size)):
        one, other = _meaning(ours, token_id), _meaning(theirs, token_id)
        if one != other:
            raise LoadError(
                f"--draft-model {draft}: its token {token_id} is {other[0]!r}, that of {target}"
                f" is {one[0]!r}"
            )


def _meaning(tokenizer: Tokenizer, token_id: int) -> tuple[bytes, bool]:
    return tokenizer.token_bytes(token_id), tokenizer.is_special(token_id)
