"""Who leaves the model early and who goes on, by the exit's own logits; no model is run."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

import pytest
import torch

from greenllm.core import (
    Approximation,
    Chunk,
    Request,
    Sample,
    SamplingParams,
    Sequence,
    sequences_of,
)
from greenllm.exits import EXIT_RUN, ExitOffer, ExitResult
from greenllm.runner.exiting import LikelyToken, exit_layer, run_leaving_early

VOCABULARY = 8
PROMPT = (1, 2, 3)
FROM_ALL = 7
UNSURE, SURE, NOT_A_NUMBER = 0.0, 20.0, math.nan


def make_sequence(name: str, approximation: Approximation | None = None, **how: Any) -> Sequence:
    """A sequence with one generated token that is not computed."""
    params = SamplingParams(**{"temperature": 0, **how})
    request = Request(name, (PROMPT,), params, model="", approximation=approximation)
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=64)
    seq.token_ids.append(4)
    return seq


def make_chunk(
    name: str = "a", *, threshold: float = 0.9, shallow: int = 0, room: int = 0, **how: Any
) -> Chunk:
    """The newest token of a request that may leave, after some that did."""
    seq = make_sequence(name, Approximation(2, threshold), **how)
    seq.token_ids += [5] * shallow
    start = len(seq.token_ids) - 1
    return Chunk(seq, start, 1, samples=True, room=room, exit=ExitOffer(2, threshold, shallow))


def num_exited(sample: Sample) -> int:
    return 0 if sample.exit is None else sample.exit.num_tokens


def plain_chunk(name: str = "plain") -> Chunk:
    return Chunk(make_sequence(name), 3, 1, samples=True)


class Early:
    """Gives out what a test has written down, and remembers who asked."""

    def __init__(
        self, heights: SequenceOf[float] = (), tokens: SequenceOf[SequenceOf[LikelyToken]] = ()
    ) -> None:
        self.heights = heights
        self.given = tokens
        self.asked: list[str] = []
        self.asked_for_several: list[str] = []

    def logits(self, chunks: list[Chunk]) -> torch.Tensor:
        """One token after another stands out, by a height."""
        self.asked = names(chunks)
        found = torch.zeros(len(chunks), VOCABULARY)
        for row, height in enumerate(self.heights):
            found[row, row % VOCABULARY] = height
        return found

    def tokens(self, chunks: list[Chunk]) -> list[list[LikelyToken]]:
        self.asked_for_several = names(chunks)
        return [list(tokens) for tokens in self.given]


class AllLayers:
    """Says the same for everybody, and remembers what it was given."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.ran: list[list[Chunk]] = []

    def __call__(self, chunks: list[Chunk]) -> list[Sample]:
        self.ran.append(chunks)
        return [Sample(**{"token_ids": (FROM_ALL,), **self.fields}) for _ in chunks]

    @property
    def places(self) -> list[tuple[int, int]]:
        """First position and number of tokens of each chunk."""
        return [(chunk.start, chunk.num_tokens) for chunks in self.ran for chunk in chunks]


def names(chunks: SequenceOf[Chunk]) -> list[str]:
    return [chunk.seq.request.request_id for chunk in chunks]


def ran_like(probabilities: SequenceOf[float], first: int = 0) -> list[LikelyToken]:
    return [LikelyToken(first + i, p) for i, p in enumerate(probabilities)]


def test_plain_chunks_run_as_they_are_and_nobody_asks_the_exit() -> None:
    exit_, run = Early(), AllLayers()
    chunks = [plain_chunk("a"), plain_chunk("b")]
    assert run_leaving_early(chunks, exit_, run) == [Sample((FROM_ALL,))] * 2
    assert run.ran == [chunks]
    assert all(given is chunk for given, chunk in zip(run.ran[0], chunks, strict=True))
    assert exit_.asked == exit_.asked_for_several == []


def test_the_sure_take_the_exits_token_and_the_others_go_on() -> None:
    exit_, run = Early([SURE, UNSURE, SURE]), AllLayers()
    chunks = [make_chunk("a"), make_chunk("b"), make_chunk("c")]
    samples = run_leaving_early(chunks, exit_, run)
    assert samples == [
        Sample((0,), exit=ExitResult(1, 1)),
        Sample((FROM_ALL,), exit=ExitResult(0, 1)),
        Sample((2,), exit=ExitResult(1, 1)),
    ]
    assert exit_.asked == ["a", "b", "c"]
    assert [names(ran) for ran in run.ran] == [["b"]]


def test_who_goes_on_brings_the_tokens_that_left_before() -> None:
    run = AllLayers()
    (sample,) = run_leaving_early([make_chunk(shallow=3)], Early([UNSURE]), run)
    assert (sample.token_ids, num_exited(sample)) == ((FROM_ALL,), 0)
    assert run.places == [(3, 4)]
    (chunk,) = run.ran[0]
    assert chunk.token_ids == [4, 5, 5, 5]
    assert (chunk.exit, chunk.room) == (None, 0)
    assert chunk.samples


def test_who_may_not_leave_any_more_brings_them_too() -> None:
    """Without anybody who may leave, and beside one who does."""
    chunk = make_chunk(shallow=5)
    full = replace(chunk, room=3, exit=ExitOffer(2, 0.9, 5, is_open=False))
    for beside, heights in (([], []), ([make_chunk("b")], [SURE])):
        run = AllLayers()
        samples = run_leaving_early([full, *beside], Early(heights), run)
        assert samples[0] == Sample((FROM_ALL,))
        assert run.places == [(3, 6)]
        assert run.ran[0][0].room == 0


def test_nothing_runs_when_all_have_left() -> None:
    run = AllLayers()
    samples = run_leaving_early(
        [make_chunk("a"), make_chunk("b", shallow=2)], Early([SURE] * 2), run
    )
    assert [num_exited(sample) for sample in samples] == [1, 1]
    assert run.ran == []


def test_samples_stay_in_the_order_of_their_chunks() -> None:
    exit_ = Early([UNSURE, SURE, SURE], [ran_like([0.99] * EXIT_RUN, first=1)])
    run = AllLayers()
    chunks = [
        plain_chunk("first"),
        make_chunk("unsure", shallow=1),
        make_chunk("several", room=EXIT_RUN - 1),
        make_chunk("sure"),
        plain_chunk("plain"),
        make_chunk("sampled", temperature=1.0, seed=1),
    ]
    found = dict(zip(names(chunks), run_leaving_early(chunks, exit_, run), strict=True))
    assert exit_.asked == ["unsure", "sure", "sampled"]
    assert exit_.asked_for_several == ["several"]
    assert [names(ran) for ran in run.ran] == [["first", "unsure", "plain"]]
    assert run.places == [(3, 1), (3, 2), (3, 1)]
    tokens = {name: sample.token_ids for name, sample in found.items()}
    assert tokens == {
        "first": (FROM_ALL,),
        "unsure": (FROM_ALL,),
        "several": (1, 2, 3, 4),
        "sure": (1,),
        "plain": (FROM_ALL,),
        "sampled": (2,),
    }


@pytest.mark.parametrize("height", [NOT_A_NUMBER, math.inf, -math.inf])
def test_what_is_no_number_is_never_sure(height: float) -> None:
    """One such logit, or all of them."""

    class Spoilt(Early):
        def logits(self, chunks: list[Chunk]) -> torch.Tensor:
            return torch.full((1, VOCABULARY), height)

    run = AllLayers()
    chunk = make_chunk(threshold=1e-9, shallow=1)
    exit_ = Early([height]) if height != -math.inf else Spoilt()
    (sample,) = run_leaving_early([chunk], exit_, run)
    assert sample == Sample((FROM_ALL,), exit=ExitResult(0, 1))
    assert run.places == [(3, 2)]


def test_a_sure_neighbour_does_not_help_what_is_no_number() -> None:
    run = AllLayers()
    chunks = [make_chunk("a", threshold=1e-9), make_chunk("b", threshold=1e-9)]
    samples = run_leaving_early(chunks, Early([NOT_A_NUMBER, SURE]), run)
    assert [num_exited(sample) for sample in samples] == [0, 1]
    assert [names(ran) for ran in run.ran] == [["a"]]


def test_sure_is_more_than_the_threshold_of_the_request() -> None:
    share = 1 / VOCABULARY
    run = AllLayers()
    chunks = [make_chunk("at", threshold=share), make_chunk("below", threshold=share * 0.999)]
    samples = run_leaving_early(chunks, Early([UNSURE, UNSURE]), run)
    assert [num_exited(sample) for sample in samples] == [0, 1]
    several = [replace(chunk, room=EXIT_RUN - 1) for chunk in chunks]
    tokens = [ran_like([share] * EXIT_RUN)] * 2
    samples = run_leaving_early(several, Early(tokens=tokens), run)
    assert [num_exited(sample) for sample in samples] == [0, EXIT_RUN]


@pytest.mark.parametrize("num_sure", range(EXIT_RUN + 1))
def test_several_tokens_leave_up_to_the_first_that_is_not_sure(num_sure: int) -> None:
    """A later one that is sure again comes after a token that all layers may see otherwise."""
    likely = [0.95] * num_sure + [0.5] * (num_sure < EXIT_RUN)
    likely += [0.95] * (EXIT_RUN - len(likely))
    run = AllLayers()
    chunk = make_chunk(shallow=2, room=EXIT_RUN - 1)
    before = list(chunk.seq.token_ids)
    (sample,) = run_leaving_early([chunk], Early(tokens=[ran_like(likely)]), run)
    early = tuple(range(num_sure))
    if num_sure == EXIT_RUN:
        assert sample == Sample(early, exit=ExitResult(EXIT_RUN, EXIT_RUN))
        assert run.ran == []
    else:
        assert sample == Sample((*early, FROM_ALL), exit=ExitResult(num_sure, EXIT_RUN))
        assert run.places == [(3, 3 + num_sure)]
        assert run.ran[0][0].token_ids == [*before[3:], *early]
        assert run.ran[0][0].samples
    assert chunk.seq.token_ids == before, "only the scheduler writes to a sequence"


def test_tokens_that_are_no_numbers_are_not_sure() -> None:
    run = AllLayers()
    chunk = make_chunk(threshold=1e-9, room=EXIT_RUN - 1)
    tokens = ran_like([0.9, NOT_A_NUMBER, 0.9, 0.9])
    (sample,) = run_leaving_early([chunk], Early(tokens=[tokens]), run)
    assert (sample.token_ids, num_exited(sample)) == ((0, FROM_ALL), 1)
    assert run.places == [(3, 2)]


def test_too_little_room_is_for_one_token() -> None:
    exit_ = Early([SURE] * (EXIT_RUN - 1))
    chunks = [make_chunk(str(room), room=room) for room in range(EXIT_RUN - 1)]
    samples = run_leaving_early(chunks, exit_, AllLayers())
    assert exit_.asked_for_several == []
    assert {sample.exit and sample.exit.num_steps for sample in samples} == {1}


def test_the_exits_token_is_drawn_as_the_request_says() -> None:
    """Penalties and log probabilities hold at the exit too."""
    chunk = make_chunk(threshold=0.2, logit_bias={6: 100.0}, logprobs=2)
    (sample,) = run_leaving_early([chunk], Early([3.0]), AllLayers())
    assert (sample.token_ids, num_exited(sample)) == ((6,), 1)
    (logprob,) = sample.logprobs
    (likeliest, _), _ = logprob.top
    assert (logprob.token_id, likeliest) == (6, 0)


def test_a_failure_of_all_layers_is_the_samples() -> None:
    run = AllLayers(token_ids=(), error="no numbers")
    tokens = ran_like([0.95, 0.5, 0.5, 0.5])
    chunk = make_chunk(room=EXIT_RUN - 1)
    (sample,) = run_leaving_early([chunk], Early(tokens=[tokens]), run)
    assert sample.error == "no numbers"


def test_one_exit_serves_a_step() -> None:
    chunks = [make_chunk("a", threshold=0.5), make_chunk("b", threshold=0.7)]
    assert exit_layer(chunks) == 2
    other = replace(chunks[0], exit=ExitOffer(3, 0.5))
    for wrong in ([*chunks, other], [plain_chunk()], [*chunks, plain_chunk()], []):
        with pytest.raises(ValueError, match="one exit for all chunks is needed"):
            exit_layer(wrong)
