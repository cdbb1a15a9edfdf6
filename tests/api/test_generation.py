"""What chat and text completions have in common, streamed or whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import App

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
STORY = "Tell me a story about a brave fox."
Way = tuple[str, bool]


@dataclass
class Choice:
    """One answer as its client puts it together; `tokens` have their log probabilities."""

    text: str = ""
    reason: str | None = None
    tokens: list[tuple[str, float, list[float]]] = field(default_factory=list)


@pytest.fixture(params=[CHAT, TEXT])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def way(request: pytest.FixtureRequest, path: str) -> Way:
    return path, request.param


def ask(server: App, way: Way, **options: Any) -> tuple[list[Choice], dict[str, Any]]:
    """Greedy answers of 24 tokens, unless told otherwise, and the usage."""
    path, streams = way
    body = server.chat(STORY) if path == CHAT else server.completion(STORY, ignore_eos=None)
    body |= {"temperature": 0, "max_tokens": 24, **options}
    if not streams:
        answers = [server.http.post(path, json=body).raise_for_status().json()]
    else:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        lines = server.http.post(path, json=body).raise_for_status().text.splitlines()
        answers = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [Choice() for _ in range(options.get("n", 1))]
    for part in (part for answer in answers for part in answer["choices"]):
        _add(choices[part["index"]], part, path)
    return choices, answers[-1]["usage"]


def _add(choice: Choice, part: dict[str, Any], path: str) -> None:
    content = part if path == TEXT else part.get("message") or part["delta"]
    choice.text += content.get("text" if path == TEXT else "content", "")
    choice.reason = part["finish_reason"] or choice.reason
    found = part["logprobs"] or {}
    for one in found.get("content", []):
        choice.tokens.append(
            (one["token"], one["logprob"], [top["logprob"] for top in one["top_logprobs"]])
        )
    for token, value, top in zip(
        *(found.get(name, []) for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        choice.tokens.append((token, value, list(top.values())))


def one(server: App, way: Way, **options: Any) -> Choice:
    return ask(server, way, **options)[0][0]


def test_an_answer_has_its_length(server: App, way: Way) -> None:
    (choice,), usage = ask(server, way)
    assert choice.text.strip()
    assert choice.reason == "length"
    assert usage["completion_tokens"] == 24
    assert usage["total_tokens"] == usage["prompt_tokens"] + 24
    assert usage["energy"]["energy_joules"] == 2.4


def test_a_stream_says_what_a_whole_answer_says(server: App, path: str) -> None:
    for options in ({}, {"n": 3, "seed": 2, "temperature": 1}, {"logprobs": path == CHAT or 1}):
        assert ask(server, (path, True), **options)[0] == ask(server, (path, False), **options)[0]


def test_n_answers_are_in_order_and_differ(server: App, way: Way) -> None:
    choices, usage = ask(server, way, n=4, seed=1, temperature=1)
    assert len({choice.text for choice in choices}) == 4
    assert usage["completion_tokens"] == 4 * 24


def test_a_seed_gives_the_same_answer_again(server: App, way: Way) -> None:
    texts = [one(server, way, temperature=1, seed=seed).text for seed in (1, 2, 3, 1)]
    assert texts[3] == texts[0]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_ends_the_answer_before_it(server: App, way: Way, as_list: bool) -> None:
    free = one(server, way).text
    stop = free[len(free) // 2 :][:5]
    cut = one(server, way, stop=["\u2603 never", stop] if as_list else stop)
    assert cut.text == free[: free.index(stop)]
    assert cut.reason == "stop"


def test_a_bias_forces_a_token_and_an_end(server: App, way: Way) -> None:
    (token,) = server.tokenize("a")
    (end,) = server.tokenize(server.http.get("/tokenizer_info").json()["eos_token"])
    assert one(server, way, logit_bias={token: 100}, max_tokens=6).text == "a" * 6
    for options, count, reason in (
        ({"logit_bias": {end: 100}}, 1, "stop"),
        ({"logit_bias": {end: 100}, "min_tokens": 5}, 6, "stop"),
        ({"logit_bias": {end: 100}, "ignore_eos": True}, 24, "length"),
        ({"logit_bias": {token: 100}, "stop_token_ids": [token]}, 1, "stop"),
    ):
        (choice,), usage = ask(server, way, **options)
        assert (usage["completion_tokens"], choice.reason) == (count, reason)
        assert way[0] == TEXT or count > 1 or choice.text == ""


@pytest.mark.parametrize("count", [0, 5])
def test_logprobs_are_of_the_tokens(server: App, way: Way, count: int) -> None:
    options = {"logprobs": True, "top_logprobs": count} if way[0] == CHAT else {"logprobs": count}
    choice = one(server, way, **options)
    assert "".join(token for token, _, _ in choice.tokens) == choice.text
    assert len(choice.tokens) == 24
    for _, value, top in choice.tokens:
        assert value <= 0
        assert top == sorted(top, reverse=True)
        assert len(top) == max(count, way[0] == TEXT)
        assert not top or value == top[0]


def test_labels_change_nothing(server: App, way: Way) -> None:
    assert one(server, way, user="u-1", metadata={"a": "b"}) == one(server, way)
