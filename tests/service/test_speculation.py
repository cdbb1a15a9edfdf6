"""Guessed tokens, through the official client: the same answers, and what they took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

LOOKUP = {"method": "prompt_lookup"}
STORY = "Tell me a story about a brave fox."
TALE = "Once upon a time, a fox lived in a forest. The fox had a red ball. " * 3
KEYS = ("draft_joules", "drafted_tokens", "accepted_tokens")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.7, "seed": 11},
    "filtered": {"temperature": 1, "top_p": 0.9, "seed": 5},
    "penalties": {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.3, "seed": 3},
    "bias": {"temperature": 0, "logit_bias": {"20": 3}},
}


def complete(client: openai.OpenAI, way: dict[str, Any], speculative: Any = None) -> Any:
    """96 tokens that go on with a text of repetitions, twice, with their log probabilities."""
    extra: dict[str, Any] = {"ignore_eos": True}
    if speculative is not None:
        extra["speculative"] = speculative
    return client.completions.create(
        model="bundled",
        prompt=[TALE, STORY],
        max_tokens=96,
        logprobs=0,
        extra_body=extra,
        **way,
    )


def chat_stream(client: openai.OpenAI, way: dict[str, Any], speculative: Any = None) -> list[Any]:
    """Chunks of a chat answer with usage."""
    stream = client.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": f"Repeat: {TALE}"}],
        max_completion_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={} if speculative is None else {"speculative": speculative},
        **way,
    )
    with stream:
        return list(stream)


def text_of(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def energy_of(answer: Any) -> dict[str, Any]:
    energy: dict[str, Any] = answer.usage.model_extra["energy"]
    return energy


@pytest.fixture(scope="module")
def guessing(start_server: StartServer) -> Iterator[Server]:
    """A server that guesses unless told otherwise."""
    with start_server("--speculative", "prompt_lookup", "--speculative-tokens", "6") as server:
        yield server


@pytest.fixture(scope="module")
def equipped(start_server: StartServer) -> Iterator[Server]:
    """A server with every method; the model is its own draft model, so its guesses come true."""
    with start_server("--speculative", "auto", "--draft-model", "bundled") as server:
        yield server


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_answers_are_those_without_guesses(client: openai.OpenAI, way: dict[str, Any]) -> None:
    plain, guessed = complete(client, way), complete(client, way, LOOKUP)

    for one, other in zip(plain.choices, guessed.choices, strict=True):
        assert other.text == one.text
        assert other.logprobs.tokens == one.logprobs.tokens
        assert other.logprobs.token_logprobs == pytest.approx(one.logprobs.token_logprobs, abs=1e-3)
    assert energy_of(plain)["drafted_tokens"] == 0
    assert energy_of(guessed)["drafted_tokens"] > 0


@pytest.mark.parametrize("way", [WAYS["greedy"], WAYS["seeded"]], ids=["greedy", "seeded"])
@pytest.mark.parametrize("method", ["draft_model", "early_exit", "auto"])
def test_answers_are_those_without_guesses_of_a_model(
    equipped: Server, method: str, way: dict[str, Any]
) -> None:
    plain = complete(equipped.openai, way, {"method": "off"})
    asked = {"method": method} if method == "auto" else {"method": method, "num_tokens": 5}
    guessed = complete(equipped.openai, way, asked)

    assert [c.text for c in guessed.choices] == [c.text for c in plain.choices]
    assert [c.logprobs.tokens for c in guessed.choices] == [
        c.logprobs.tokens for c in plain.choices
    ]
    energy = energy_of(guessed)
    if method != "auto":
        assert 0 < energy["accepted_tokens"] <= energy["drafted_tokens"]
        assert 0 < energy["draft_joules"] < energy["active_joules"]


def test_auto_comes_to_guess(equipped: Server) -> None:
    """Whatever it has learnt of other sizes: an answer is longer than what it begins with."""
    answers = [complete(equipped.openai, WAYS["greedy"], {"method": "auto"}) for _ in range(3)]
    assert any(energy_of(answer)["accepted_tokens"] > 0 for answer in answers)


def test_a_good_draft_model_makes_few_steps(equipped: Server) -> None:
    before = equipped.metrics()
    answer = complete(equipped.openai, WAYS["greedy"], {"method": "draft_model", "num_tokens": 7})
    energy = energy_of(answer)
    steps = equipped.metric("steps_total") - before["greenllm_steps_total"]

    assert energy["accepted_tokens"] > 0.8 * energy["drafted_tokens"]
    assert steps < 40
    joules = {
        name: value - before.get(name, 0.0)
        for name, value in equipped.metrics().items()
        if name.startswith("greenllm_energy_joules_total")
    }
    draft_j = sum(value for name, value in joules.items() if 'phase="draft"' in name)
    assert draft_j == pytest.approx(energy["draft_joules"], rel=0.01)


@pytest.mark.parametrize("way", [WAYS["greedy"], WAYS["seeded"]], ids=["greedy", "seeded"])
def test_streams_are_those_without_guesses(client: openai.OpenAI, way: dict[str, Any]) -> None:
    plain, guessed = chat_stream(client, way), chat_stream(client, way, LOOKUP)

    assert text_of(guessed) == text_of(plain)
    assert guessed[-1].usage.completion_tokens == plain[-1].usage.completion_tokens
    assert energy_of(guessed[-1])["drafted_tokens"] > 0


def test_guesses_that_come_true_save_steps(server: Server) -> None:
    def steps(**more: Any) -> tuple[float, dict[str, Any]]:
        before = server.metric("steps_total")
        body = server.completion(TALE, max_tokens=96, temperature=0, **more)
        usage = server.http.post("/v1/completions", json=body).json()["usage"]
        return server.metric("steps_total") - before, usage["energy"]

    plain, _ = steps()
    guessed, energy = steps(speculative={"method": "prompt_lookup", "num_tokens": 8})
    assert plain == 96
    assert guessed == plain - energy["accepted_tokens"]
    assert energy["accepted_tokens"] > 0


def test_figures_are_on_every_answer_and_in_the_ledger(
    server: Server, client: openai.OpenAI
) -> None:
    before = server.metrics()
    plain, guessed = complete(client, WAYS["greedy"]), complete(client, WAYS["greedy"], LOOKUP)
    after = server.metrics()

    assert [energy_of(plain)[key] for key in KEYS] == [0, 0, 0]
    energy, row = energy_of(guessed), server.row(guessed.id)
    receipt = server.http.get(f"/v1/energy/{guessed.id}").json()
    assert {key: receipt[key] for key in KEYS} == {key: energy[key] for key in KEYS}
    assert (row.drafted_tokens, row.accepted_tokens) == tuple(energy[key] for key in KEYS[1:])
    assert 0 < row.accepted_tokens <= row.drafted_tokens
    assert row.draft_j == 0, "looking at the prompt asks no model"
    for name, counted in zip(("drafted", "accepted"), KEYS[1:], strict=True):
        grown = f"greenllm_{name}_tokens_total"
        assert after[grown] - before[grown] == energy[counted]


def test_prompts_are_scored_with_guesses_too(server: Server) -> None:
    body = server.completion(TALE, max_tokens=24, temperature=0, prompt_logprobs=1)
    plain, guessed = (
        server.http.post("/v1/completions", json={**body, **more}).json()["choices"][0]
        for more in ({}, {"speculative": LOOKUP})
    )

    assert guessed["text"] == plain["text"]
    scores = [choice["prompt_logprobs"]["token_logprobs"][1:] for choice in (plain, guessed)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_the_server_guesses_unless_told_otherwise(guessing: Server) -> None:
    guessed = complete(guessing.openai, WAYS["greedy"])
    plain = complete(guessing.openai, WAYS["greedy"], {"method": "off"})

    assert [c.text for c in guessed.choices] == [c.text for c in plain.choices]
    assert energy_of(guessed)["drafted_tokens"] > 0
    assert energy_of(plain)["drafted_tokens"] == 0


def test_models_say_how_the_server_guesses(server: Server, guessing: Server) -> None:
    ours, theirs = (
        one.http.get("/v1/models/bundled").json()["speculation"] for one in (server, guessing)
    )

    assert (ours["method"], ours["num_tokens"]) == ("off", 4)
    assert (theirs["method"], theirs["num_tokens"]) == ("prompt_lookup", 6)
    assert {"off", "prompt_lookup"} <= set(ours["methods"])
    assert ours["draft_model"] is None


def test_models_say_what_a_server_guesses_with(equipped: Server) -> None:
    found = equipped.http.get("/v1/models/bundled").json()["speculation"]

    assert found["method"] == "auto"
    assert set(found["methods"]) == {"off", "auto", "prompt_lookup", "early_exit", "draft_model"}
    assert found["draft_model"] == "bundled"
    assert 1 <= found["exit_layer"] <= 5


def test_the_books_are_balanced(guessing: Server, equipped: Server) -> None:
    """Last in this file: joules of guesses, true or not, are on the bills."""
    for server in (guessing, equipped):
        server.wait_idle()
        assert server.session().totals.requests_j > 0
        assert server.metric("conservation_violations_total") == 0
    rows = equipped.rows(outcome="completed")
    assert any((row.draft_j or 0) > 0 for row in rows)
    for row in rows:
        parts = (row.prefill_j or 0) + (row.decode_j or 0) + (row.draft_j or 0)
        assert row.active_j == pytest.approx(parts)
