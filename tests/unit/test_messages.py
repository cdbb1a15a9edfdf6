"""Messages of Python callers: as templates want them, or refused where the mistake is."""

from __future__ import annotations

from typing import Any

import pytest

from greenllm.core import InvalidRequestError
from greenllm.messages import conversation

HI = {"role": "user", "content": "Hi"}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Hi", [HI]),
        ([HI], [HI]),
        ((message for message in [HI]), [HI]),
        ([{"role": "developer", "content": "Be"}], [{"role": "system", "content": "Be"}]),
        ([{"role": "user", "content": [part("H"), part("i")]}], [HI]),
        ([{**HI, "name": "Ann"}], [{**HI, "name": "Ann"}]),
        (
            [{"role": "assistant", "content": None, "refusal": None, "tool_calls": []}],
            [{"role": "assistant", "content": ""}],
        ),
    ],
)
def test_messages_become_what_templates_want(given: Any, found: list[dict[str, str]]) -> None:
    assert conversation(given) == found


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        (5, "messages", "a conversation is a text, or messages"),
        (None, "messages", "not None"),
        (HI, "messages", "a conversation is a text, or messages"),
        ([], "messages", "there is none"),
        ([HI, "Hi"], "messages.1", "messages.1 is 'Hi'"),
        ([{"role": "user", "content": 5}], "messages.0.content", "but is 5"),
        ([{"role": "user"}], "messages.0.content", "but is missing"),
        ([{"role": "user", "content": ["Hi"]}], "messages.0.content", "a list of"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content", "a list of"),
        ([{"content": "Hi"}], "messages.0.role", "not None"),
        ([{**HI, "role": "alien"}], "messages.0.role", "must be one of system, developer, user"),
        ([{**HI, "role": ["user"]}], "messages.0.role", "must be one of"),
        ([{**HI, "name": 5}], "messages.0.name", "must be a text"),
        ([{**HI, "tool_calls": [{}]}], "messages.0.tool_calls", "is not supported"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(given: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        conversation(given)
    assert caught.value.param == param
    assert "\n" not in str(caught.value)
