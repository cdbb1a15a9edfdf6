"""Streams that end well, and those that do not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from evals.load.stream import StreamReader

END = b"data: [DONE]\n\n"


def event(text: str = "", reason: str | None = None, **more: Any) -> bytes:
    choice = {"text": text, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def test_times_are_those_of_text_however_bytes_arrive() -> None:
    data = b": hello\n\n" + event() + event("a") + event("b", "length") + END
    reader = StreamReader()
    for i, byte in enumerate(data):
        reader.feed(bytes([byte]), float(i))
    assert reader.first_s == data.index(b"\n", data.index(b'"a"'))
    assert reader.last_s == data.index(b"\n", data.index(b'"b"'))
    assert reader.failure(2, fixed_length=True) is None
    assert reader.tokens(2) == 2


def test_usage_wins_and_a_chat_delta_is_text() -> None:
    reader = StreamReader()
    reader.feed(b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n', 1.0)
    reader.feed(b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n' + END, 2.0)
    assert (reader.first_s, reader.tokens(9)) == (1.0, 3)
    assert reader.failure(9, fixed_length=False) is None
    assert reader.failure(9, fixed_length=True) == "cut short: 3 of 9 tokens"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (event("a", "length"), r"ended without \[DONE\]"),
        (event("a") + END, "no finish_reason"),
        (event("a", "error") + END, "finish_reason error"),
        (event("a", "stop") + END, "does not say how many"),
        (b'data: {"error":{"message":"boom"}}\n\n' + END, "boom"),
        (b"data: {]\n\n" + END, "not JSON"),
        (b"data: 3\n\n" + END, "not JSON"),
        (b"", r"ended without \[DONE\]"),
    ],
)
def test_a_stream_that_does_not_count_says_why(data: bytes, reason: str) -> None:
    reader = StreamReader()
    reader.feed(data, 0.0)
    failure = reader.failure(4, fixed_length=True)
    assert failure is not None
    assert re.search(reason, failure)


def test_some_servers_end_without_done() -> None:
    reader = StreamReader(ends_with_done=False)
    reader.feed(event("a", "length", usage={"completion_tokens": 4}), 0.0)
    assert reader.failure(4, fixed_length=True) is None
