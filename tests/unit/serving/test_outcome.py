"""The status that each client is sent, and what the bridge adds of it to a receipt; no server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from greenllm.core import FinishReason, Request, SamplingParams
from greenllm.energy.receipt import Outcome, Receipt
from serving.bridge import Bridge
from serving.outcome import failure_of

REQUEST = Request("r1", ((1, 2),), SamplingParams(), model="m")


def receipt(outcome: Outcome) -> Receipt:
    return Receipt("r1", "m", outcome, 0.0, "final", "measured:x", True)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    loop = asyncio.new_event_loop()
    yield Bridge(loop, max_in_flight=8)
    loop.close()


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
    failure = failure_of(reason, "no memory")
    assert failure is not None
    assert failure.status == bridge.stamp(receipt(outcome)).http_status


def test_an_answer_that_ended_in_time_is_no_failure() -> None:
    assert [failure_of(reason, "") for reason in ("stop", "length", None)] == [None] * 3


def test_a_client_that_left_is_sent_nothing(bridge: Bridge) -> None:
    assert bridge.leave(bridge.open(REQUEST, streaming=False))
    assert bridge.stamp(receipt("aborted")).http_status is None


def test_a_receipt_after_the_answer_keeps_its_status(bridge: Bridge) -> None:
    assert bridge.stamp(receipt("completed")) == receipt("completed")
