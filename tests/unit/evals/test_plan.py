"""Shots, prompts and traces."""

from __future__ import annotations

from itertools import islice

import pytest

from evals.load.plan import (
    Shot,
    TraceError,
    even_shots,
    length_factor,
    prompt_ids,
    prompt_text,
    read_trace,
    scale_trace,
)

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"
TRACE = [
    HEAD,
    "2023-11-16 18:15:46.6805900,300,100",
    "2023-11-16 18:15:48.6805900,1500,500",
    "2023-11-16 18:15:50.1805900,10,0",
]


def test_prompts_differ_from_each_other_and_repeat_with_the_seed() -> None:
    shots = list(islice(even_shots(12, 4), 50))
    prompts = {tuple(prompt_ids(7, shot, 1000)) for shot in shots}
    assert len(prompts) == 50
    assert {tuple(prompt_ids(7, shot, 1000)) for shot in shots} == prompts
    assert not prompts & {tuple(prompt_ids(8, shot, 1000)) for shot in shots}
    assert all(len(prompt) == 12 and 8 <= min(prompt) <= max(prompt) < 1000 for prompt in prompts)


def test_a_text_has_as_many_words_as_the_shot_has_tokens() -> None:
    assert len(prompt_text(1, Shot(0, 9, 1)).split()) == 9


def test_a_trace_is_read_from_its_first_arrival_on() -> None:
    shots = read_trace(TRACE)
    assert [round(shot.at_s, 3) for shot in shots] == [0.0, 2.0, 3.5]
    assert [(shot.prompt_tokens, shot.max_tokens) for shot in shots] == [
        (300, 100),
        (1500, 500),
        (10, 1),
    ]
    assert len(read_trace(TRACE, limit=2)) == 2


def test_lengths_shrink_by_one_factor_until_the_longest_fits() -> None:
    shots = read_trace(TRACE)
    assert length_factor(shots, 500) == 0.25
    assert length_factor(shots, 5000) == length_factor(shots, None) == 1.0
    scaled = scale_trace(shots, max_context=500, rate_scale=2.0)
    assert [(s.prompt_tokens, s.max_tokens) for s in scaled] == [(75, 25), (375, 125), (2, 1)]
    assert [round(s.at_s, 3) for s in scaled] == [0.0, 1.0, 1.75]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["TIMESTAMP,ContextTokens", "x,1"], "no column GeneratedTokens"),
        ([HEAD], "no arrivals"),
        ([HEAD, "noon,1,1"], "arrival 1"),
        ([HEAD, "2023-11-16 18:15:46,many,1"], "arrival 1"),
        ([HEAD, "2023-11-16 18:15:46,0,1"], "lengths 0, 1"),
        ([HEAD, "2023-11-16 18:15:46"], "arrival 1"),
        ([HEAD, "2023-11-16 18:15:46,1,1", "2023-11-16 18:15:45,1,1"], "arrival 2"),
    ],
)
def test_a_broken_trace_is_refused_with_its_place(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_trace(lines)
