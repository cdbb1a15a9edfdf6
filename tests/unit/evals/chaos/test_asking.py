"""What a client makes of a reply, and which replies the ledger must know."""

from __future__ import annotations

import json

import pytest

from evals.chaos.asking import CUT, IN_STREAM, Reply, streamed_answer, whole_answer

DONE = b"data: [DONE]\n\n"


def chunk(text: str, finish_reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_a_stream_adds_up_however_it_was_cut_into_events() -> None:
    one = streamed_answer(chunk("a fox", "stop") + b": energy {}\n\n" + DONE)
    other = streamed_answer(chunk("a ") + chunk("fox") + chunk("", "stop") + DONE)
    assert one == other == (b'[[0, "a fox", "stop"]]', None)
    assert streamed_answer(delta("a ") + delta("fox") + DONE)[0] == b'[[0, "a fox", null]]'


def test_answers_of_several_choices_are_told_apart() -> None:
    mixed = chunk("b", index=1) + chunk("a") + chunk("", "stop", 1) + chunk("", "length") + DONE
    assert streamed_answer(mixed)[0] == b'[[0, "a", "length"], [1, "b", "stop"]]'


def test_a_stream_that_tells_of_an_error_or_breaks_off_is_no_answer() -> None:
    error = b'data: {"error": {"message": "no"}}\n\n'
    assert streamed_answer(chunk("a") + error + DONE) == (None, IN_STREAM)
    assert streamed_answer(chunk("a", "stop")) == (None, CUT)


def test_a_whole_answer_is_its_choices_alone() -> None:
    assert whole_answer(b'{"id": "x", "choices": [{"b": 1, "a": 2}]}') == b'[{"a": 2, "b": 1}]'


@pytest.mark.parametrize(
    ("reply", "needs_row"),
    [
        (Reply(), False),
        (Reply(400), False),
        (Reply(404, "req-1"), False),
        (Reply(500, "req-1"), True),
        (Reply(200, "cmpl-1"), True),
        (Reply(400, "cmpl-1"), True),
    ],
)
def test_what_became_a_request_needs_a_row(reply: Reply, needs_row: bool) -> None:
    assert reply.needs_row is needs_row
    assert reply.is_accepted is (reply != Reply())
