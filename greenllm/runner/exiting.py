"""A step in which some chunks may leave the model early: the exit first, then whatever it left.

Contract: a chunk with an open exit is read there. Where the exit's likeliest token is more likely
than the request's threshold, the exit's logits are what is sampled from, and nothing else runs for
the chunk; with room it may go on so for several tokens. What the exit is not sure of runs through
all layers, together with the pending tokens before it (see `greenllm.exits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol

from torch import Tensor

from greenllm.core import Chunk, Sample
from greenllm.exits import EXIT_RUN, ExitResult
from greenllm.runner.readout import read_out, wanted_rows
from greenllm.runner.stepwise import plain


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """The most probable token and its probability."""

    token_id: int
    probability: float


class FirstLayers(Protocol):
    """The layers before an exit and the head, on the model's own keys and values."""

    def logits(self, chunks: list[Chunk]) -> Tensor:
        """[chunks, vocabulary] after the newest token of each."""

    def tokens(self, chunks: list[Chunk]) -> list[list[LikelyToken]]:
        """`EXIT_RUN` tokens for each chunk, each after the one before."""


def run_leaving_early(
    chunks: Sequence[Chunk], first: FirstLayers, run: Callable[[list[Chunk]], list[Sample]]
) -> list[Sample]:
    """One sample per chunk; `run` takes chunks through all layers."""
    asked = [chunk for chunk in chunks if chunk.may_exit]
    if not asked:
        return run([chunk.through_all_layers() for chunk in chunks])
    several = [chunk for chunk in asked if chunk.room >= EXIT_RUN - 1]
    single = [chunk for chunk in asked if chunk.room < EXIT_RUN - 1]
    found = (_first_tokens(several, first) if several else {}) | (
        _first_samples(single, first) if single else {}
    )
    staying = [chunk for chunk in chunks if not _has_left(found.get(id(chunk)))]
    rest = run([_whole(chunk, found.get(id(chunk))) for chunk in staying]) if staying else []
    for chunk, sample in zip(staying, rest, strict=True):
        found[id(chunk)] = _joined(found.get(id(chunk)), sample)
    return [found[id(chunk)] for chunk in chunks]


def exit_layer(chunks: Sequence[Chunk]) -> int:
    """The exit that all of the chunks' requests name.

    Raises:
        ValueError: they name none, or different ones.
    """
    layers = {None if chunk.exit is None else chunk.exit.layer for chunk in chunks}
    (layer,) = layers if len(layers) == 1 else (None,)
    if layer is None:
        raise ValueError(f"one exit for all chunks is needed, got {layers}")
    return layer


def _first_tokens(chunks: list[Chunk], first: FirstLayers) -> dict[int, Sample]:
    """What the exit is sure of at the beginning of its tokens; perhaps nothing."""
    found: dict[int, Sample] = {}
    for chunk, tokens in zip(chunks, first.tokens(chunks), strict=True):
        least = _threshold(chunk)
        sure = takewhile(lambda token, least=least: token.probability > least, tokens)  # type: ignore[misc]
        ids = tuple(token.token_id for token in sure)
        found[id(chunk)] = Sample(ids, exit=ExitResult(len(ids), len(tokens)))
    return found


def _first_samples(chunks: list[Chunk], first: FirstLayers) -> dict[int, Sample]:
    """One token of each chunk, drawn from the exit's logits where it is sure; else nothing."""
    logits = first.logits(chunks)
    sure = [place for place, is_sure in enumerate(_are_sure(chunks, logits)) if is_sure]
    leaving = [chunks[place] for place in sure]
    samples = read_out(leaving, [wanted_rows(chunk) for chunk in leaving], logits[sure])
    found = {id(chunk): Sample(exit=ExitResult(0, 1)) for chunk in chunks}
    for chunk, sample in zip(leaving, samples, strict=True):
        found[id(chunk)] = replace(sample, exit=ExitResult(1, 1))
    return found


def _are_sure(chunks: Sequence[Chunk], logits: Tensor) -> list[bool]:
    """Whether each chunk's likeliest token is likely enough; never where logits are no numbers."""
    likeliest = (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp()
    thresholds = [_threshold(chunk) for chunk in chunks]
    sure: list[bool] = (likeliest > likeliest.new_tensor(thresholds)).tolist()
    return sure


def _threshold(chunk: Chunk) -> float:
    return 1.0 if chunk.exit is None else chunk.exit.threshold


def _has_left(sample: Sample | None) -> bool:
    return sample is not None and sample.exit is not None and sample.exit.is_all


def _whole(chunk: Chunk, early: Sample | None) -> Chunk:
    """A chunk for all layers, with what the exit has just chosen after its newest token."""
    whole = chunk.through_all_layers()
    if early is None or not early.token_ids:
        return whole
    longer = plain(whole)
    longer.seq.token_ids += early.token_ids
    return replace(longer, num_tokens=whole.num_tokens + len(early.token_ids))


def _joined(early: Sample | None, sample: Sample) -> Sample:
    """The exit's tokens and that of all layers after them."""
    if early is None:
        return sample
    return replace(sample, token_ids=early.token_ids + sample.token_ids, exit=early.exit)
