"""What counts as the same answer, and what is asked."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evals.studies.exactness import (
    ROUNDING,
    Answer,
    compare,
    holds,
    logprob_gap,
    make_requests,
    parting,
    random_prompts,
    random_sampling,
    with_method,
)
from greenllm.core import Request, SamplingParams, Token, TokenLogprob
from greenllm.runner.sampling import uniform
from greenllm.speculation.prompt_lookup import look_up

VOCABULARY = 8
REQUEST = Request("r", ((1, 2),), SamplingParams(temperature=0, max_tokens=9), model="")
METHODS = ("prompt_lookup", "early_exit", "auto")


def answer(*token_ids: int, end: Any = "length", logprob: float | None = None) -> Answer:
    """As an engine gives it."""
    scores = [None if logprob is None else TokenLogprob(i, logprob, ((i, -1),)) for i in token_ids]
    tokens = [Token("r", 0, i, logprob=score) for i, score in zip(token_ids, scores, strict=True)]
    return [*tokens[:-1], replace(tokens[-1], finish_reason=end)]


def reference(*logits: float, ends: frozenset[int] = frozenset()) -> Any:
    """A model that always has these logits."""

    def model(ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=torch.tensor(logits).expand(1, ids.shape[1], -1))

    return SimpleNamespace(model=model, info=SimpleNamespace(eos_token_ids=ends))


def counts(plain: Answer, other: Answer, *logits: float, **settings: Any) -> tuple[int, int, int]:
    """Answers that are the same, near-ties and different."""
    request = replace(REQUEST, work=replace(REQUEST.sampling, **settings))
    row = compare([request], [plain], [other], reference(*(logits or (0.0,) * VOCABULARY)))
    return row["same"], row["near_ties"], row["different"]


SAME, NEAR, DIFFERENT = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        (answer(1, 2, 3), answer(1, 2, 3), None),
        (answer(1, 2, 3), answer(1, 4, 3), 1),
        (answer(1, 2, 3), answer(1, 2), 2),
        (answer(0), answer(1), 0),
    ],
)
def test_where_answers_part(one: Answer, other: Answer, place: int | None) -> None:
    assert parting(one, other) == parting(other, one) == place


def test_gaps_count_until_answers_part() -> None:
    assert logprob_gap(answer(1, 2), answer(1, 2)) == 0
    assert logprob_gap(answer(1, 2, logprob=-1), answer(1, 2, logprob=-1.5)) == 0.5
    assert logprob_gap(answer(1, 2, logprob=-1), answer(2, 2, logprob=-1.5)) == 0
    assert logprob_gap(answer(1, 2, logprob=-1), answer(1, 2)) == math.inf


def test_answers_that_are_not_the_same() -> None:
    plain = answer(1, 2, logprob=-1)
    assert counts(plain, answer(1, 2, logprob=-1.00001)) == SAME
    assert counts(plain, answer(1, 2, logprob=-1.001)) == DIFFERENT
    assert counts(plain, answer(1, 2)) == DIFFERENT
    assert counts(plain, answer(1, 2, logprob=-1, end="stop")) == DIFFERENT
    assert counts(plain, answer(1, 2, 3, logprob=-1)) == DIFFERENT, "an end is no matter of logits"


@pytest.mark.parametrize(("gap", "verdict"), [(ROUNDING / 10, NEAR), (3 * ROUNDING, DIFFERENT)])
def test_near_ties_are_told_from_differences(gap: float, verdict: tuple[int, int, int]) -> None:
    assert counts(answer(1, 2), answer(1, 3), 0, 0, 1, 1 - gap) == verdict
    assert counts(answer(1, 2), answer(1, 0), 0, 0, 1, 1 - gap) == DIFFERENT, "a third token"


def test_penalties_and_forbidden_ends_are_part_of_a_near_tie() -> None:
    penalised = {"presence_penalty": 1.0}
    assert counts(answer(2, 2), answer(2, 3), 0, 0, 2, 1, **penalised) == NEAR
    assert counts(answer(2, 2), answer(2, 3), 0, 0, 2, 1) == DIFFERENT
    early = {"min_tokens": 3, "stop_token_ids": (0,)}
    assert counts(answer(2, 2), answer(2, 3), 9, 0, 1, 1, **early) == NEAR


def test_a_near_tie_of_a_sample_is_a_draw_at_a_border() -> None:
    """Two tokens, of which the first has just the chance that was drawn, or a little more."""
    seed = 7
    draw = uniform(seed * 1_000_003, len(REQUEST.prompts[0]) + 1)
    border = math.log((1 - draw) / draw)
    plain, other = answer(1, 0), answer(1, 1)
    assert counts(plain, other, 0, border, temperature=1.0, seed=seed) == NEAR
    assert counts(plain, other, 0, border - 0.01, temperature=1.0, seed=seed) == DIFFERENT


def test_prompts_are_as_long_as_promised_and_lookups_find_something() -> None:
    prompts = random_prompts(300, 1000, seed=1)
    assert prompts == random_prompts(300, 1000, seed=1) != random_prompts(300, 1000, seed=2)
    assert {len(prompt) for prompt in prompts} >= {1, 40}
    assert all(1 <= len(prompt) <= 40 and max(prompt) < 1000 for prompt in prompts)
    assert 0.25 < sum(bool(look_up(prompt, 4)) for prompt in prompts) / 300 < 0.8


def test_every_setting_is_on_at_times() -> None:
    source = random.Random(1)
    drawn = [random_sampling(source, 0.8, 24, 1000) for _ in range(100)]
    off = SamplingParams()
    fields = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens")
    for name in (*fields, "repetition_penalty", "logit_bias", "stop_token_ids", "logprobs"):
        on = sum(getattr(params, name) != getattr(off, name) for params in drawn)
        assert 10 < on < 60, name
    assert len({params.seed for params in drawn}) == 100


def test_requests_repeat_with_the_seed() -> None:
    def make(seed: int) -> list[Request]:
        return make_requests(random_prompts(20, 50, 1), "sampled", 24, 50, seed)

    assert make(1) == make(1) != make(2)


def test_methods_take_turns_where_they_are_mixed() -> None:
    requests = make_requests(random_prompts(40, 50, 1), "greedy", 24, 50, 1)
    methods = [
        r.speculation and r.speculation.method for r in with_method(requests, "mixed", METHODS)
    ]
    assert methods == ["off", *METHODS] * 10
    alone = [r.speculation for r in with_method(requests, "early_exit", METHODS)]
    assert {s.method for s in alone if s} == {"early_exit"}
    assert len({s.num_tokens for s in alone if s}) > 3


def test_a_method_that_never_guessed_shows_nothing() -> None:
    row = {"different": 0, "drafted": 5}
    assert holds(row)
    assert not holds(row | {"drafted": 0})
    assert not holds(row | {"different": 1})
