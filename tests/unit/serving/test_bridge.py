"""The bridge knows what each client is sent; no server and no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from greenllm.core import Request, SamplingParams
from greenllm.energy.receipt import Outcome, Receipt
from serving.bridge import Bridge

REQUEST = Request("r1", ((1, 2),), SamplingParams(), model="m")


def receipt(outcome: Outcome) -> Receipt:
    return Receipt("r1", "m", outcome, 0.0, "final", "measured:x", True)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    loop = asyncio.new_event_loop()
    yield Bridge(loop, submit=lambda request: None, abort=lambda name: None, max_in_flight=8)
    loop.close()


@pytest.mark.parametrize(
    ("outcome", "whole", "streamed"),
    [("completed", 200, 200), ("failed", 500, 200), ("aborted", 503, 200)],
)
def test_the_status_follows_from_how_it_ended(
    bridge: Bridge, outcome: Outcome, whole: int, streamed: int
) -> None:
    for streaming, status in ((False, whole), (True, streamed)):
        bridge.submit(REQUEST, streaming=streaming)
        assert bridge.stamped(receipt(outcome)).http_status == status


def test_who_leaves_is_sent_nothing(bridge: Bridge) -> None:
    bridge.cancel(bridge.submit(REQUEST, streaming=False))
    assert bridge.stamped(receipt("aborted")).http_status is None


def test_what_was_answered_before_keeps_its_status(bridge: Bridge) -> None:
    assert bridge.stamped(receipt("completed")) == receipt("completed")
