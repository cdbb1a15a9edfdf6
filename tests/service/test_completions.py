"""Text completions through the official client, and the contract of lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from openai.types import Completion

    from tests.service.conftest import Server

PROMPT = "Once upon a time there was a"


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **options: Any) -> Completion:
    """One greedy continuation of 8 tokens, unless told otherwise."""
    options = {"temperature": 0, "max_tokens": 8, **options}
    extra = {"ignore_eos": True, **options.pop("extra_body", {})}
    answer: Completion = client.completions.create(
        model="bundled", prompt=prompt, extra_body=extra, **options
    )
    return answer


def texts(answer: Completion) -> list[str]:
    return [choice.text for choice in answer.choices]


def test_a_completion_is_complete(client: openai.OpenAI) -> None:
    answer = complete(client)

    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=None)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_token_ids_are_the_same_prompt(server: Server, client: openai.OpenAI) -> None:
    ids = server.tokenize(PROMPT)
    answer = complete(client, ids)

    assert texts(answer) == texts(complete(client))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_list_of_strings(client: openai.OpenAI) -> None:
    answer = complete(client, ["The sun", "A dog", "My friend"])

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts(answer))) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


def test_list_of_token_id_lists_with_n(server: Server, client: openai.OpenAI) -> None:
    prompts = [server.tokenize("The sun"), server.tokenize("A dog ran")]
    answer = complete(client, prompts, n=2, echo=True, temperature=1, seed=5)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(text.startswith("The sun") for text in texts(answer)[:2])
    assert all(text.startswith("A dog ran") for text in texts(answer)[2:])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(ids) for ids in prompts)


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    assert texts(complete(client, echo=True)) == [PROMPT + texts(complete(client))[0]]


def test_echo_of_a_prompt_alone(client: openai.OpenAI) -> None:
    answer = complete(client, echo=True, max_tokens=0)

    assert texts(answer) == [PROMPT]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_harness_contract(server: Server, client: openai.OpenAI) -> None:
    ids = server.tokenize("Tom has a red ball and Lily has a blue ball.")
    answer = complete(client, ids, max_tokens=1, logprobs=1, echo=True)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens is not None
    scores: list[float | None] = list(logprobs.token_logprobs)
    assert len(scores) == len(logprobs.tokens) == len(logprobs.top_logprobs) == len(ids) + 1
    assert scores[0] is None
    best: list[dict[str, float] | None] = list(logprobs.top_logprobs)
    assert best[0] is None
    assert all(score is not None and score <= 0 for score in scores[1:])
    assert scores[-1] == max(logprobs.top_logprobs[-1].values())
    for score, top in zip(scores[1:], best[1:], strict=True):
        assert score is not None
        assert top is not None
        assert score <= max(top.values())
    assert "".join(logprobs.tokens) == answer.choices[0].text


def test_harness_contract_when_the_answer_ends_at_once(
    server: Server, client: openai.OpenAI
) -> None:
    """The harness cuts off the last score: it must be the generated token's, also for the end."""
    (end,) = server.tokenize(server.http.get("/tokenizer_info").json()["eos_token"])
    ids = server.tokenize(PROMPT)
    options = {"max_tokens": 1, "logprobs": 1, "echo": True, "logit_bias": {str(end): 100}}
    answer = complete(client, ids, extra_body={"ignore_eos": False}, **options)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == PROMPT
    assert len(logprobs.token_logprobs) == len(ids) + 1


def test_harness_contract_in_a_batch(server: Server, client: openai.OpenAI) -> None:
    prompts = [server.tokenize(text) for text in ("Yes, it is.", "The cat sat on the", "No")]
    answer = complete(client, prompts, max_tokens=1, logprobs=1, echo=True)
    alone = complete(client, prompts[1], max_tokens=1, logprobs=1, echo=True)

    for choice, ids in zip(answer.choices, prompts, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == len(ids) + 1
    first, second = alone.choices[0].logprobs, answer.choices[1].logprobs
    assert first is not None
    assert second is not None
    assert first.tokens == second.tokens
    assert (first.token_logprobs or [])[1:] == pytest.approx(
        (second.token_logprobs or [])[1:], abs=1e-3
    )


def test_prompt_is_scored_the_same_from_the_cache(client: openai.OpenAI) -> None:
    prompt = PROMPT + " little" * 40
    options = {"max_tokens": 1, "logprobs": 1, "echo": True}
    scores = [complete(client, prompt, **options).choices[0].logprobs for _ in range(2)]

    assert scores[0] is not None
    assert scores[1] is not None
    assert (scores[0].token_logprobs or [])[1:] == pytest.approx(
        (scores[1].token_logprobs or [])[1:], abs=1e-3
    )


def test_logprobs_of_the_answer(client: openai.OpenAI) -> None:
    answer = complete(client, logprobs=3)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == 8
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert answer.choices[0].text[offset:].startswith(token)
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs or [])


def test_prompt_logprobs_without_echo(server: Server) -> None:
    body = server.completion(["The sun", "A dog"], max_tokens=1, prompt_logprobs=2)
    choices = server.http.post("/v1/completions", json=body).json()["choices"]

    for choice, prompt in zip(choices, ["The sun", "A dog"], strict=True):
        assert "".join(choice["prompt_logprobs"]["tokens"]) == prompt
        assert choice["prompt_logprobs"]["token_logprobs"][0] is None


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_is_not_part_of_the_answer(client: openai.OpenAI, as_list: bool) -> None:
    (free,) = texts(complete(client, max_tokens=24))
    stop = free[len(free) // 2 :][:4]
    answer = complete(client, max_tokens=24, stop=[stop] if as_list else stop)

    assert texts(answer) == [free[: free.index(stop)]]
    assert answer.choices[0].finish_reason == "stop"


def test_same_seed_same_completion(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> list[str]:
        return texts(complete(client, temperature=1, seed=seed, max_tokens=24))

    assert sampled(7) == sampled(7)
    assert len({sampled(seed)[0] for seed in (7, 8, 9)}) > 1


def test_best_of_one_is_no_wish(client: openai.OpenAI) -> None:
    assert texts(complete(client, best_of=1)) == texts(complete(client))
