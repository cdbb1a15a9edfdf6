"""Text completions through the official client, and the contract of lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai

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
    answer = complete(client, max_tokens=None)
    assert (answer.object, answer.model) == ("text_completion", "bundled")
    assert answer.choices[0].logprobs is None
    assert usage_of(answer).completion_tokens == 16, "by default"


def test_prompts_are_texts_or_ids_one_or_many(server: App, client: openai.OpenAI) -> None:
    prompts = ["The sun", "A dog ran", "My friend"]
    ids = [server.tokenize(prompt) for prompt in prompts]
    alone = [texts(complete(client, prompt))[0] for prompt in prompts]
    assert texts(complete(client, ids[0])) == [alone[0]]
    for asked in (prompts, ids):
        answer = complete(client, asked)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert texts(answer) == alone
        assert usage_of(answer).prompt_tokens == sum(map(len, ids))
        assert usage_of(answer).completion_tokens == 24


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    assert texts(complete(client, echo=True)) == [PROMPT + texts(complete(client))[0]]
    prompts = ["The sun", "A dog ran"]
    answer = complete(client, prompts, n=2, echo=True, temperature=1, seed=5)
    for choice in answer.choices:
        assert choice.text.startswith(prompts[choice.index // 2])
    alone = complete(client, echo=True, max_tokens=0)
    assert texts(alone) == [PROMPT]
    assert usage_of(alone).completion_tokens == 0


def test_harness_contract(server: App, client: openai.OpenAI) -> None:
    ids = server.tokenize("Tom has a red ball and Lily has a blue ball.")
    answer = complete(client, ids, **HARNESS)
    logprobs = logprobs_of(answer)
    assert logprobs.tokens is not None
    scores: list[float | None] = list(logprobs.token_logprobs or [])
    best: list[dict[str, float] | None] = list(logprobs.top_logprobs or [])
    assert len(scores) == len(logprobs.tokens) == len(best) == len(ids) + 1
    assert (scores[0], best[0]) == (None, None)
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


def test_harness_contract_in_a_batch_and_from_the_cache(server: App, client: openai.OpenAI) -> None:
    words = ("Yes, it is.", "The cat sat on the", "No", PROMPT + " little" * 40)
    prompts = [server.tokenize(text) for text in words]
    complete(client, prompts[3], max_tokens=1)
    answer = complete(client, prompts, **HARNESS)
    for index, ids in enumerate(prompts):
        found = logprobs_of(answer, index)
        assert len(found.token_logprobs or []) == len(ids) + 1
        assert found == logprobs_of(complete(client, ids, **HARNESS))


def test_offsets_are_places_in_the_text(client: openai.OpenAI) -> None:
    answer = complete(client, logprobs=3)
    logprobs = logprobs_of(answer)
    for token, offset in zip(logprobs.tokens or [], logprobs.text_offset or [], strict=True):
        assert answer.choices[0].text[offset:].startswith(token)


def test_prompt_logprobs_without_echo(server: App) -> None:
    prompts = ["The sun", "A dog"]
    body = server.completion(prompts, max_tokens=1, prompt_logprobs=2)
    choices = server.http.post("/v1/completions", json=body).json()["choices"]
    for choice, prompt in zip(choices, prompts, strict=True):
        assert "".join(choice["prompt_logprobs"]["tokens"]) == prompt
        assert choice["prompt_logprobs"]["token_logprobs"][0] is None
        assert choice["logprobs"] is None
