"""Text completions through the official client, and the contract of lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from openai.types import Completion, CompletionUsage
    from openai.types.completion_choice import Logprobs

    from tests.api.conftest import App

PROMPT = "Once upon a time there was a"
HARNESS: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True}


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **options: Any) -> Completion:
    """One greedy continuation of 8 tokens, unless told otherwise."""
    options = {"temperature": 0, "max_tokens": 8, **options}
    answer: Completion = client.completions.create(model="bundled", prompt=prompt, **options)
    return answer


def texts(answer: Completion) -> list[str]:
    return [choice.text for choice in answer.choices]


def usage_of(answer: Completion) -> CompletionUsage:
    assert answer.usage is not None
    return answer.usage


def logprobs_of(answer: Completion, index: int = 0) -> Logprobs:
    found: Logprobs | None = answer.choices[index].logprobs
    assert found is not None
    return found


def test_a_completion_is_complete(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text
    assert answer.choices[0].logprobs is None
    assert usage_of(answer).completion_tokens == 8


def test_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    assert usage_of(complete(client, max_tokens=None)).completion_tokens == 16


def test_token_ids_are_the_same_prompt(server: App, client: openai.OpenAI) -> None:
    ids = server.tokenize(PROMPT)
    answer = complete(client, ids)
    assert texts(answer) == texts(complete(client))
    assert usage_of(answer).prompt_tokens == len(ids)


def test_list_of_strings(client: openai.OpenAI) -> None:
    prompts = ["The sun", "A dog", "My friend"]
    answer = complete(client, prompts)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts(answer) == [texts(complete(client, prompt))[0] for prompt in prompts]
    assert usage_of(answer).completion_tokens == 24


def test_list_of_token_id_lists_with_n(server: App, client: openai.OpenAI) -> None:
    prompts = [server.tokenize("The sun"), server.tokenize("A dog ran")]
    answer = complete(client, prompts, n=2, echo=True, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(text.startswith("The sun") for text in texts(answer)[:2])
    assert all(text.startswith("A dog ran") for text in texts(answer)[2:])
    assert usage_of(answer).prompt_tokens == sum(len(ids) for ids in prompts)


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    assert texts(complete(client, echo=True)) == [PROMPT + texts(complete(client))[0]]


def test_echo_of_a_prompt_alone(client: openai.OpenAI) -> None:
    answer = complete(client, echo=True, max_tokens=0)
    assert texts(answer) == [PROMPT]
    assert usage_of(answer).completion_tokens == 0


def test_harness_contract(server: App, client: openai.OpenAI) -> None:
    ids = server.tokenize("Tom has a red ball and Lily has a blue ball.")
    answer = complete(client, ids, **HARNESS)
    logprobs = logprobs_of(answer)
    assert logprobs.tokens is not None
    scores: list[float | None] = list(logprobs.token_logprobs or [])
    best: list[dict[str, float] | None] = list(logprobs.top_logprobs or [])
    assert len(scores) == len(logprobs.tokens) == len(best) == len(ids) + 1
    assert scores[0] is None
    assert best[0] is None
    for score, top in zip(scores[1:], best[1:], strict=True):
        assert score is not None
        assert top is not None
        assert score <= 0
        assert score <= max(top.values())
    assert scores[-1] == max((best[-1] or {}).values())
    assert "".join(logprobs.tokens) == answer.choices[0].text


def test_harness_contract_when_the_answer_ends_at_once(server: App, client: openai.OpenAI) -> None:
    """The harness cuts off the last score: it must be the generated token's, also for the end."""
    (end,) = server.tokenize(server.http.get("/tokenizer_info").json()["eos_token"])
    ids = server.tokenize(PROMPT)
    answer = complete(client, ids, logit_bias={str(end): 100}, **HARNESS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == PROMPT
    assert len(logprobs_of(answer).token_logprobs or []) == len(ids) + 1


def test_harness_contract_in_a_batch(server: App, client: openai.OpenAI) -> None:
    prompts = [server.tokenize(text) for text in ("Yes, it is.", "The cat sat on the", "No")]
    answer = complete(client, prompts, **HARNESS)
    for index, ids in enumerate(prompts):
        found = logprobs_of(answer, index)
        assert len(found.token_logprobs or []) == len(ids) + 1
        assert found == logprobs_of(complete(client, ids, **HARNESS))


def test_prompt_is_scored_the_same_from_the_cache(client: openai.OpenAI) -> None:
    prompt = PROMPT + " little" * 40
    plain = complete(client, prompt, max_tokens=1)
    first, second = (complete(client, prompt, **HARNESS) for _ in range(2))
    assert usage_of(plain).prompt_tokens == usage_of(first).prompt_tokens
    assert logprobs_of(first) == logprobs_of(second)


def test_logprobs_of_the_answer(client: openai.OpenAI) -> None:
    answer = complete(client, logprobs=3)
    logprobs = logprobs_of(answer)
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 8
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
        assert answer.choices[0].text[offset:].startswith(token)
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs or [])


def test_prompt_logprobs_without_echo(server: App) -> None:
    prompts = ["The sun", "A dog"]
    body = server.completion(prompts, max_tokens=1, prompt_logprobs=2)
    choices = server.http.post("/v1/completions", json=body).json()["choices"]
    for choice, prompt in zip(choices, prompts, strict=True):
        assert "".join(choice["prompt_logprobs"]["tokens"]) == prompt
        assert choice["prompt_logprobs"]["token_logprobs"][0] is None
        assert choice["logprobs"] is None


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
    assert len({sampled(seed)[0] for seed in (7, 8, 9)}) == 3


def test_best_of_one_is_no_wish(client: openai.OpenAI) -> None:
    assert texts(complete(client, best_of=1)) == texts(complete(client))
