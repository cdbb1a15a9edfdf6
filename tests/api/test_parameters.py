"""Every documented parameter reaches the engine and is applied, or is refused by its name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
import torch

from greenllm.core import (
    Approximation,
    InvalidRequestError,
    Request,
    SamplingParams,
    Speculation,
    TokenLogprob,
)
from greenllm.core import Sequence as TokenSequence
from greenllm.messages import conversation
from greenllm.runner.sampling import Draw, SamplingPosition, sample
from tests.api.machine import Talker
from tests.api.shapes import body_schema
from tests.fake_engine import make_engine
from tests.fake_model import EOS, VOCABULARY, FakeRunner
from tests.sampling_examples import REFUSED_AS, examples

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
TEXT_PART = {"type": "text", "text": "What is this?"}
TOOL = {"type": "function", "function": {"name": "f"}}

# Values that are no defaults, and the `SamplingParams` that they become.
BOTH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        ({name: value}, {name: value})
        for name, value in {
            "temperature": 0.7, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5,
            "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 3, "min_tokens": 2,
            "max_tokens": 5, "ignore_eos": True, "n": 2, "prompt_logprobs": 2,
        }.items()
    ),
    ({"top_k": -1}, {"top_k": 0}),
    ({"logit_bias": {"5": -3}}, {"logit_bias": {5: -3.0}}),
    ({"stop": "x"}, {"stop": ("x",)}),
    ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
    ({"stop_token_ids": [7, 8]}, {"stop_token_ids": (7, 8)}),
]  # fmt: skip
REACHING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((path, change, found) for path in (CHAT, TEXT) for change, found in BOTH),
    (CHAT, {"logprobs": True}, {"logprobs": 0}),
    (CHAT, {"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
    (CHAT, {"max_tokens": None, "max_completion_tokens": 5}, {"max_tokens": 5}),
    (TEXT, {"logprobs": 4}, {"logprobs": 4}),
    (TEXT, {"logprobs": 4, "echo": True}, {"logprobs": 4, "prompt_logprobs": 4}),
]
# What says how an answer is made or told, not which tokens are drawn.
OTHERS = {"model", "stream", "stream_options", "speculative", "approximate", "user", "metadata"}
OTHERS_OF = {CHAT: OTHERS | {"messages", "response_format"}, TEXT: OTHERS | {"prompt", "echo"}}
UNSUPPORTED: list[tuple[str, str, Any, str]] = [
    (CHAT, "tools", [TOOL], "tools is not supported"),
    (CHAT, "tool_choice", "auto", 'tool_choice is not supported, only "none"'),
    (CHAT, "functions", [TOOL], "functions is not supported"),
    (CHAT, "function_call", "auto", "function_call is not supported"),
    (CHAT, "parallel_tool_calls", True, "parallel_tool_calls is not supported"),
    (CHAT, "audio", {"voice": "a", "format": "wav"}, "audio is not supported"),
    (CHAT, "prediction", {"type": "content", "content": "a"}, "prediction is not supported"),
    (CHAT, "reasoning_effort", "high", "reasoning_effort is not supported"),
    (CHAT, "modalities", ["audio"], 'modalities is not supported, only ["text"]'),
    (CHAT, "service_tier", "flex", 'service_tier is not supported, only "auto" or "default"'),
    (CHAT, "store", True, "store is not supported, only false"),
    (TEXT, "best_of", 3, "best_of is not supported, only 1"),
    (TEXT, "suffix", "the end", "suffix is not supported"),
    (TEXT, "stream_options", {"include_obfuscation": True},
     "stream_options.include_obfuscation is not supported, only false"),
    (CHAT, "messages", [USER, {"role": "user", "content": [TEXT_PART, IMAGE]}],
     "messages.1.content: parts of type image_url are not supported, only text"),
    (CHAT, "messages", [{"role": "tool", "content": "a", "tool_call_id": "b"}],
     "messages.0.role: the role tool is not supported"),
    *((CHAT, "messages", [{**USER, name: value}], f"messages.0.{name} is not supported")
      for name, value in {"refusal": "no", "audio": {"id": "a"}, "annotations": [{}],
                          "function_call": {"name": "f"}, "tool_calls": [TOOL]}.items()),
]  # fmt: skip
HISTORY = [
    {"role": "user", "content": [TEXT_PART]},
    {"role": "assistant", "content": None, "refusal": None, "audio": None},
    {"role": "assistant", "content": "Hi", "tool_calls": [], "annotations": []},
    USER,
]
OFF: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}),
    (CHAT, {"store": False, "service_tier": "auto", "modalities": ["text"]}),
    (CHAT, {"service_tier": "default", "reasoning_effort": None, "messages": HISTORY}),
    (TEXT, {"best_of": 1, "suffix": None}),
]


def seen(server: App, path: str, **change: Any) -> Request:
    """The request that the engine was given."""
    body = server.chat("Hi") if path == CHAT else server.completion("Hi", ignore_eos=None)
    answer = server.http.post(path, json={**body, **{"max_tokens": 4}, **change})
    assert answer.status_code == 200, answer.text
    (request, *_) = server.machine.seen
    return request


@pytest.mark.parametrize(("path", "change", "found"), REACHING)
def test_sampling_parameters_reach_the_engine(
    server: App, path: str, change: dict[str, Any], found: dict[str, Any]
) -> None:
    assert seen(server, path, **change).sampling == SamplingParams(**{"max_tokens": 4, **found})


def test_no_sampling_parameter_is_left_out() -> None:
    """But what holds answers to a form: that is vLLM's so far."""
    reached = {name for _, _, found in REACHING for name in found}
    assert reached == {field.name for field in fields(SamplingParams)} - {"grammar"}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_documented_parameter_is_known_here(server: App, path: str) -> None:
    documented = set(body_schema(server.http.get("/openapi.json").json(), path)["properties"])
    reaching = {name for where, change, _ in REACHING if where == path for name in change}
    refused = {name for where, name, _, _ in UNSUPPORTED if where == path}
    assert documented == reaching | refused | OTHERS_OF[path]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_ways_of_making_an_answer_reach_the_engine(server: App, path: str) -> None:
    plain = seen(server, path)
    assert (plain.speculation, plain.approximation) == (None, None)
    assert (plain.endpoint, plain.model) == (path, "bundled")
    for method, number in (("prompt_lookup", 4), ("auto", 4), ("off", 4)):
        guessing = seen(server, path, speculative={"method": method})
        assert guessing.speculation == Speculation(method, number)  # type: ignore[arg-type]
    few = seen(server, path, speculative={"method": "early_exit", "num_tokens": 2})
    assert few.speculation == Speculation("early_exit", 2)
    lossy = seen(server, path, approximate={"threshold": 0.9})
    assert lossy.approximation == Approximation(1, 0.9)
    agreeing = seen(server, path, approximate={"agreement": 0.93})
    assert agreeing.approximation == Approximation(1, 0.6, 0.95)


@pytest.mark.parametrize(("path", "name", "value", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_said_in_our_words(
    server: App, path: str, name: str, value: Any, message: str
) -> None:
    body = server.chat() if path == CHAT else server.completion(stream=True)
    answer = server.http.post(path, json={**body, name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["message"].startswith(message)
    assert error["param"].startswith(name)


@pytest.mark.parametrize(("path", "change"), OFF)
def test_values_that_mean_off_are_taken(server: App, path: str, change: dict[str, Any]) -> None:
    assert seen(server, path, **change).sampling == seen(server, path).sampling


def test_the_library_takes_and_refuses_the_same_messages(server: App) -> None:
    """In the same words, where HTTP's are its own."""
    (prompt,) = seen(server, CHAT, messages=HISTORY).prompts
    (same,) = seen(server, CHAT, messages=conversation(HISTORY)).prompts
    assert prompt == same
    refused = [(value, words) for _, name, value, words in UNSUPPORTED if name == "messages"]
    assert len(refused) > 5
    for value, words in refused:
        with pytest.raises(InvalidRequestError, match=f"^{words}$"):
            conversation(value)


class Drawing(FakeRunner):
    """The fake model with logits, from which the native engine's own sampling chooses."""

    def choose(self, seq: TokenSequence, context: Sequence[int]) -> int:
        return self._draw(seq, len(context)).token_id

    def logprob(self, seq: TokenSequence, token_id: int) -> TokenLogprob:
        found = self._draw(seq, len(seq.token_ids)).logprob
        assert found is not None
        return found

    def _draw(self, seq: TokenSequence, position: int) -> Draw:
        generator = torch.Generator().manual_seed(position)
        logits = 2 * torch.randn((1, VOCABULARY), generator=generator)
        logits[:, EOS] = -10.0
        return sample(logits, [SamplingPosition(seq)])[0]


# The ends of what is taken, and what is just outside of it.
EXTREMES: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 1e-40, 1e-5, 2),
    "top_p": (1e-46, 1e-37, 1),
    "top_k": (-1, 1, 2**31),
    "min_p": (0, 1e-300, 1),
    "repetition_penalty": (1e-40, 0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logit_bias": ({}, {"5": 100, "6": -100}, {"5": 1e-46}, {"5": 1e39}),
    "logprobs": (None, 5),
}


def test_extreme_parameters_are_served_or_refused(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one and in several hundred combinations, with the native engine's own sampling."""

    def choose(runner: Talker, seq: TokenSequence, context: Sequence[int]) -> int:
        generator = torch.Generator().manual_seed(len(context))
        logits = 1e4 * torch.randn((1, runner.info.vocab_size), generator=generator)
        (found,) = sample(logits, [SamplingPosition(seq)])
        assert not found.error
        return found.token_id

    monkeypatch.setattr(Talker, "choose", choose)
    server, chance = start_app(), random.Random(5)
    alone = [{name: value} for name, values in EXTREMES.items() for value in values]
    together = [{k: chance.choice(values) for k, values in EXTREMES.items()} for _ in range(300)]
    statuses = []
    for change in [*alone, *together]:
        found = server.http.post(TEXT, json=server.completion("Hi", max_tokens=2, **change))
        statuses.append(found.status_code)
        if found.status_code == 400:
            assert found.json()["error"]["param"] in change, found.text
    assert set(statuses) == {200, 400}
    assert statuses[: len(alone)].count(400) == 6
    assert statuses[len(alone) :].count(200) > 10


def answer(params: SamplingParams) -> object:
    """Of the native engine: its tokens, or the parameter that it refuses."""
    engine = make_engine(Drawing(32, 4))
    asked = Request("r", ((1, 2, 3),), params, model="fake")
    try:
        engine.check(asked)
    except InvalidRequestError as error:
        return error.param
    engine.add_request(asked)
    tokens = []
    while engine.has_work:
        tokens += engine.step()
    return tokens


@pytest.mark.parametrize("name", [spec.name for spec in fields(SamplingParams)])
def test_the_native_engine_applies_each_sampling_parameter_or_refuses_it(name: str) -> None:
    assert name in examples(EOS), f"{name} needs an example in tests/sampling_examples.py"
    without, given = answer(examples(EOS)[name].without), answer(examples(EOS)[name].given)
    assert without != given, f"{name} is accepted and ignored"
    if isinstance(given, str):
        assert given == REFUSED_AS.get(name, name)
