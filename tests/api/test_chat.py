"""Chat completions through the official client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion

    from tests.api.conftest import App

STORY = "Tell me a story about a brave fox."
USER: dict[str, Any] = {"role": "user", "content": STORY}
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


def usage_of(answer: ChatCompletion) -> CompletionUsage:
    assert answer.usage is not None
    return answer.usage


def test_an_answer_is_complete(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.model == "bundled"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert text_of(answer).strip()
    assert usage_of(answer).completion_tokens == 24
    assert usage_of(answer).total_tokens == usage_of(answer).prompt_tokens + 24


def test_raw_response_carries_the_energy_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], max_completion_tokens=4
    )
    assert all(raw.headers.get(name) for name in ENERGY_HEADERS)
    assert float(raw.headers["x-energy-joules"]) > 0
    assert raw.parse().id == raw.headers["x-request-id"]


def test_n_answers_in_order(client: openai.OpenAI) -> None:
    answer = ask(client, n=4, seed=1, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) == 4
    assert usage_of(answer).completion_tokens == 4 * 24


def test_same_seed_same_answer(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return text_of(ask(client, temperature=1, seed=seed))

    answers = [sampled(seed) for seed in (1, 2, 3, 4)]
    assert sampled(1) == answers[0]
    assert len(set(answers)) == 4


def test_logprobs_of_chosen_and_best_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=5)
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


def test_prompt_logprobs_are_of_every_token_of_the_conversation(client: openai.OpenAI) -> None:
    answer = ask(client, extra_body={"prompt_logprobs": 0}, max_completion_tokens=1)
    scores = (answer.model_extra or {})["prompt_logprobs"]
    assert STORY in "".join(scores["tokens"])
    assert len(scores["token_logprobs"]) == usage_of(answer).prompt_tokens
    assert scores["token_logprobs"][0] is None
    assert all(score <= 0 for score in scores["token_logprobs"][1:])


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_ends_the_answer_before_it(client: openai.OpenAI, as_list: bool) -> None:
    free = text_of(ask(client))
    stop = free[len(free) // 2 :][:5]
    answer = ask(client, stop=["\u2603 never", stop] if as_list else stop)
    assert text_of(answer) == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_and_max_completion_tokens_mean_the_same(client: openai.OpenAI) -> None:
    old = client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], max_tokens=7, temperature=0
    )
    assert usage_of(old).completion_tokens == 7
    assert text_of(old) == text_of(ask(client, max_completion_tokens=7))


def test_logit_bias_forces_a_token(server: App, client: openai.OpenAI) -> None:
    token = server.tokenize("a")[0]
    answer = ask(client, logit_bias={str(token): 100}, max_completion_tokens=6)
    assert text_of(answer) == "a" * 6


def test_system_message_counts(client: openai.OpenAI) -> None:
    system = ask(client, messages=[{"role": "system", "content": "Be brief."}, USER])
    developer = ask(client, messages=[{"role": "developer", "content": "Be brief."}, USER])
    assert usage_of(system).prompt_tokens > usage_of(ask(client)).prompt_tokens
    assert text_of(system) == text_of(developer) != text_of(ask(client))


def test_an_answers_message_can_be_sent_back_as_it_is(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "My name is Ranoric."}]
    first = ask(client, messages=messages)
    messages += [first.choices[0].message, {"role": "user", "content": "What is my name?"}]
    second = ask(client, messages=messages)
    assert usage_of(second).prompt_tokens > usage_of(first).prompt_tokens + 24
    assert second.choices[0].message.content


def test_content_parts_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": STORY[:9]}, {"type": "text", "text": STORY[9:]}]
    joined = ask(client, messages=[{"role": "user", "content": parts}])
    assert text_of(joined) == text_of(ask(client))


def test_min_tokens_keeps_the_end_away(server: App, client: openai.OpenAI) -> None:
    (end,) = server.tokenize(server.http.get("/tokenizer_info").json()["eos_token"])
    bias = {str(end): 100}
    short = ask(client, logit_bias=bias)
    longer = ask(client, logit_bias=bias, extra_body={"min_tokens": 5})
    endless = ask(client, logit_bias=bias, extra_body={"ignore_eos": True})
    answers = (short, longer, endless)
    assert [usage_of(answer).completion_tokens for answer in answers] == [1, 6, 24]
    assert [a.choices[0].finish_reason for a in answers] == ["stop", "stop", "length"]
    assert text_of(short) == ""


def test_stop_token_ids_end_the_answer(server: App, client: openai.OpenAI) -> None:
    token = server.tokenize("a")[0]
    answer = ask(
        client, logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]}, logprobs=True
    )
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer) == ""
    assert usage_of(answer).completion_tokens == 1
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content == []


def test_user_and_metadata_change_nothing(client: openai.OpenAI) -> None:
    assert text_of(ask(client, user="u-1", metadata={"a": "b"})) == text_of(ask(client))


def test_an_answer_without_a_limit_fills_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert usage_of(answer).total_tokens == 1024
