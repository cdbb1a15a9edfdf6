"""Chat completions through the official client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from tests.service.conftest import Server

STORY = "Tell me a story about a brave fox."
ENERGY_HEADERS = ("x-energy-joules", "x-energy-method", "x-carbon-gco2e", "x-request-id")


def ask(client: openai.OpenAI, text: str = STORY, **options: Any) -> ChatCompletion:
    """One greedy answer of up to 24 tokens, unless told otherwise."""
    options = {"temperature": 0, "max_completion_tokens": 24, **options}
    messages = options.pop("messages", [{"role": "user", "content": text}])
    answer: ChatCompletion = client.chat.completions.create(
        model="bundled", messages=messages, **options
    )
    return answer


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def test_an_answer_is_complete(client: openai.OpenAI) -> None:
    answer = ask(client, extra_body={"ignore_eos": True})

    assert answer.object == "chat.completion"
    assert answer.model == "bundled"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert text_of(answer).strip()
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_greedy_answers_repeat(client: openai.OpenAI) -> None:
    assert text_of(ask(client)) == text_of(ask(client))


def test_raw_response_carries_the_energy_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], max_completion_tokens=4
    )

    assert all(raw.headers.get(name) for name in ENERGY_HEADERS)
    assert float(raw.headers["x-energy-joules"]) > 0
    assert raw.parse().id == raw.headers["x-request-id"]


def test_n_answers_in_order(client: openai.OpenAI) -> None:
    answer = ask(client, n=4, seed=1, temperature=1, extra_body={"ignore_eos": True})

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * 24


def test_same_seed_same_answer(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return text_of(ask(client, temperature=1, seed=seed, max_completion_tokens=32))

    answers = [sampled(seed) for seed in (1, 2, 3, 4)]

    assert sampled(1) == answers[0]
    assert len(set(answers)) > 1


def test_logprobs_of_chosen_and_best_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=5, extra_body={"ignore_eos": True})

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 24
    for token in logprobs.content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0]
        assert sum(math.exp(value) for value in values) <= 1 + 1e-6
        assert bytes(token.bytes or []).decode() == token.token
    assert "".join(token.token for token in logprobs.content) == text_of(answer)


def test_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    logprobs = ask(client, logprobs=True).choices[0].logprobs

    assert logprobs is not None
    assert logprobs.content
    assert all(token.logprob <= 0 and not token.top_logprobs for token in logprobs.content)


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_ends_the_answer_before_it(client: openai.OpenAI, as_list: bool) -> None:
    free = text_of(ask(client))
    stop = free[len(free) // 2 :][:5]
    answer = ask(client, stop=["\u2603 never", stop] if as_list else stop)

    assert text_of(answer) == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_and_max_completion_tokens_mean_the_same(client: openai.OpenAI) -> None:
    old = client.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": STORY}],
        max_tokens=7,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    new = ask(client, max_completion_tokens=7, extra_body={"ignore_eos": True})

    assert old.usage is not None
    assert old.usage.completion_tokens == 7
    assert text_of(old) == text_of(new)


def test_logit_bias_forces_a_token(server: Server, client: openai.OpenAI) -> None:
    token = server.tokenize("a")[0]
    answer = ask(client, logit_bias={str(token): 100}, max_completion_tokens=6)

    assert text_of(answer) == "a" * 6


def test_system_message_counts(client: openai.OpenAI) -> None:
    user = {"role": "user", "content": STORY}
    alone = ask(client, messages=[user]).usage
    system = ask(client, messages=[{"role": "system", "content": "Be brief."}, user])
    developer = ask(client, messages=[{"role": "developer", "content": "Be brief."}, user])

    assert alone is not None
    assert system.usage is not None
    assert system.usage.prompt_tokens > alone.prompt_tokens
    assert text_of(system) == text_of(developer)


def test_an_answers_message_can_be_sent_back_as_it_is(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "My name is Ranoric."}]
    first = client.chat.completions.create(model="bundled", messages=messages, temperature=0)
    messages += [first.choices[0].message, {"role": "user", "content": "What is my name?"}]
    second = client.chat.completions.create(model="bundled", messages=messages, temperature=0)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.choices[0].message.content


def test_conversation_with_an_assistant_turn(client: openai.OpenAI) -> None:
    turns = ["Hello!", "Hi.", "Tell me more."]
    roles = ["user", "assistant", "user"]
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]

    answer = ask(client, messages=messages)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > sum(len(turn.split()) for turn in turns)


def test_content_parts_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": STORY[:9]}, {"type": "text", "text": STORY[9:]}]

    assert text_of(ask(client, messages=[{"role": "user", "content": parts}])) == text_of(
        ask(client)
    )


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}])
def test_narrow_sampling_is_greedy(client: openai.OpenAI, narrow: dict[str, float]) -> None:
    assert text_of(ask(client, temperature=2, seed=3, extra_body=narrow)) == text_of(ask(client))


def test_tiny_top_p_is_greedy(client: openai.OpenAI) -> None:
    assert text_of(ask(client, temperature=2, seed=3, top_p=1e-6)) == text_of(ask(client))


def test_repetition_penalty_breaks_a_forced_repetition(
    server: Server, client: openai.OpenAI
) -> None:
    bias = {str(server.tokenize("a")[0]): 40.0}
    free = ask(client, logit_bias=bias, max_completion_tokens=8)
    penalised = ask(
        client,
        logit_bias=bias,
        max_completion_tokens=8,
        extra_body={"repetition_penalty": 100.0, "ignore_eos": True},
    )

    assert text_of(free) == "a" * 8
    assert text_of(penalised) != text_of(free)


def test_min_tokens_keeps_the_end_away(server: Server, client: openai.OpenAI) -> None:
    (end,) = server.tokenize(server.http.get("/tokenizer_info").json()["eos_token"])
    bias = {str(end): 100}
    short = ask(client, logit_bias=bias)
    longer = ask(client, logit_bias=bias, extra_body={"min_tokens": 5})
    endless = ask(client, logit_bias=bias, extra_body={"ignore_eos": True})

    counts = [answer.usage.completion_tokens for answer in (short, longer, endless) if answer.usage]
    assert counts == [1, 6, 24]
    assert [a.choices[0].finish_reason for a in (short, longer, endless)] == [
        "stop",
        "stop",
        "length",
    ]
    assert text_of(short) == ""


def test_stop_token_ids_end_the_answer(server: Server, client: openai.OpenAI) -> None:
    token = server.tokenize("a")[0]
    answer = ask(
        client, logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]}, logprobs=True
    )

    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer) == ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_user_and_metadata_change_nothing(client: openai.OpenAI) -> None:
    assert text_of(ask(client, user="u-1", metadata={"a": "b"})) == text_of(ask(client))


def test_answer_without_a_limit_ends(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], temperature=0
    )

    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 1024
