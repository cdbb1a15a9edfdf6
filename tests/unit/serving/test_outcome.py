"""How a request ended decides what its client is sent, and the ledger has the same; no server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from greenllm.core import FinishReason, Request, SamplingParams, Token
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.served import Served
from serving.bridge import Bridge, QueueLimits, Submission
from serving.openai.forms import ChatForm
from serving.openai.stream import events
from serving.outcome import failure_of, outcome_of

REQUEST = Request("r1", ((1, 2),), SamplingParams(), model="m")


def receipt(outcome: Outcome) -> Receipt:
    return Receipt("r1", "m", outcome, 0.0, "final", "measured:x", True)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    loop = asyncio.new_event_loop()
    yield Bridge(loop, QueueLimits(max_requests=8))
    loop.close()


@pytest.fixture
def form() -> ChatForm:
    served = SimpleNamespace(info=SimpleNamespace(eos_token_ids=frozenset()), tokenizer=None)
    return ChatForm(REQUEST, cast(Served, served))


@pytest.mark.parametrize(
    ("outcome", "whole", "streamed"),
    [("completed", 200, 200), ("failed", 500, 200), ("aborted", 503, 200)],
)
def test_the_status_follows_from_how_it_ended(
    bridge: Bridge, outcome: Outcome, whole: int, streamed: int
) -> None:
    for streaming, status in ((False, whole), (True, streamed)):
        bridge.open(REQUEST, streaming=streaming)
        assert bridge.stamp(receipt(outcome)).http_status == status


@pytest.mark.parametrize(("reason", "outcome"), [("error", "failed"), ("abort", "aborted")])
def test_the_client_is_sent_the_status_that_the_ledger_has(
    bridge: Bridge, reason: FinishReason, outcome: Outcome
) -> None:
    bridge.open(REQUEST, streaming=False)
    failure = failure_of(outcome_of(reason), "no memory")
    assert failure is not None
    assert failure.status == bridge.stamp(receipt(outcome)).http_status


def test_an_answer_that_ended_in_time_is_no_failure() -> None:
    assert {outcome_of(reason) for reason in ("stop", "length", None)} == {"completed"}
    assert failure_of("completed") is None


def test_a_client_that_left_is_sent_nothing(bridge: Bridge) -> None:
    assert bridge.leave(bridge.open(REQUEST, streaming=False))
    assert bridge.stamp(receipt("aborted")).http_status is None


def test_a_receipt_after_the_answer_keeps_its_status(bridge: Bridge) -> None:
    assert bridge.stamp(receipt("completed")) == receipt("completed")


def stream_of(form: ChatForm, outcome: Outcome, tokens: list[Token]) -> str:
    """Everything that a stream sends whose engine has told these tokens and this end."""

    async def run() -> str:
        submission = Submission(REQUEST, streaming=True)
        submission.tokens.extend(tokens)
        submission.receipt = receipt(outcome)
        parts = events(
            submission,
            form,
            include_usage=False,
            keep_alive_s=60,
            interval_s=0,
            on_end=lambda: None,
        )
        return "".join([part async for part in parts])

    return asyncio.run(run())


@pytest.mark.parametrize("tokens", [[], [Token("r1", 0, None, finish_reason="abort")]])
def test_a_stream_whose_engine_stops_says_so_once(form: ChatForm, tokens: list[Token]) -> None:
    sent = stream_of(form, "aborted", tokens)
    assert sent.count("the server shut down") == 1
    assert sent.endswith("data: [DONE]\n\n")


def test_a_stream_that_ends_in_time_has_no_error(form: ChatForm) -> None:
    sent = stream_of(form, "completed", [Token("r1", 0, 5, ("hi",), finish_reason="stop")])
    assert '"content":"hi"' in sent
    assert '"error"' not in sent
