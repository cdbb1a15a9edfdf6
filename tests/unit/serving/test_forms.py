"""The wire shapes of an answer's events, whole and in chunks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greenllm.choices import gather
from greenllm.core import Event, Reasoning, Request, SamplingParams, Token, ToolCall
from greenllm.energy.receipt import Receipt
from greenllm.served import Served
from serving.openai.forms import ChatForm, encoded

RECEIPT = Receipt("r", "m", "completed", 0.0, "final", "measured:x", True)
CALL = ToolCall(0, '{"a"', "call-1", "add")
MORE = ToolCall(0, ":1}")
NAMED = {"id": "call-1", "type": "function"}


@pytest.fixture
def form() -> ChatForm:
    served = SimpleNamespace(info=SimpleNamespace(eos_token_ids=frozenset({0})), tokenizer=None)
    request = Request("r", ((1,),), SamplingParams(), "m", asked_model="alias")
    return ChatForm(request, cast(Served, served))


CALL_CHUNKS = [
    {"index": 0, **NAMED, "function": {"name": "add", "arguments": '{"a"'}},
    {"index": 0, "function": {"arguments": ":1}"}},
]


@pytest.mark.parametrize(
    ("events", "delta"),
    [
        (("a", "b"), {"content": "ab"}),
        ((Reasoning("so"),), {"reasoning_content": "so"}),
        ((CALL, MORE), {"tool_calls": CALL_CHUNKS}),
    ],
)
def test_a_chunk_has_each_event_under_its_key(
    form: ChatForm, events: tuple[Event, ...], delta: dict[str, Any]
) -> None:
    chunk = form.chunk(Token("r", 0, 5, events))
    assert chunk is not None
    assert chunk["delta"] == delta


def test_a_token_without_events_has_no_chunk_before_the_end(form: ChatForm) -> None:
    assert form.chunk(Token("r", 0, 5)) is None
    end = form.chunk(Token("r", 0, 5, finish_reason="length"))
    assert end is not None
    assert (end["delta"], end["finish_reason"]) == ({}, "length")


def test_a_whole_message_has_calls_in_place_of_no_text(form: ChatForm) -> None:
    tokens = [Token("r", 0, 5, (Reasoning("so"), CALL)), Token("r", 0, 6, (MORE,))]
    body = json.loads(encoded(form.answer(gather(tokens, 1, form.hidden_ids), RECEIPT)))
    assert body["model"] == "alias"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "so",
        "tool_calls": [{**NAMED, "function": {"name": "add", "arguments": '{"a":1}'}}],
    }


def test_a_plain_message_has_no_other_keys(form: ChatForm) -> None:
    tokens = [Token("r", 0, 5, ("hi",))]
    body = json.loads(encoded(form.answer(gather(tokens, 1, form.hidden_ids), RECEIPT)))
    message = {"role": "assistant", "content": "hi", "refusal": None}
    assert body["choices"][0]["message"] == message


def test_what_has_no_number_is_null_in_json() -> None:
    numbers = [1.5, float("nan"), float("inf")]
    found = json.loads(encoded({"a": {"b": numbers}, "choices": iter(numbers)}))
    assert found == {"a": {"b": [1.5, None, None]}, "choices": [1.5, None, None]}
