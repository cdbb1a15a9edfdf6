"""The queue has room for so many requests and tokens, and one key never has all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from greenllm.core import Request, SamplingParams
from greenllm.energy.receipt import Receipt
from serving.bridge import Bridge, QueueFullError, QueueLimits

MakeBridge = Callable[..., Bridge]


@pytest.fixture
def make_bridge() -> Iterator[MakeBridge]:
    loop = asyncio.new_event_loop()
    yield lambda **limits: Bridge(loop, QueueLimits(**limits))
    loop.close()


def request(name: str, *, key: str | None = None, n: int = 1, max_tokens: int = 8) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens)
    return Request(name, ((1, 2),), params, "m", key=key)


def fill(bridge: Bridge, *requests: Request) -> None:
    for one in requests:
        bridge.open(one, streaming=False)


def test_requests_are_counted(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(max_requests=2)
    fill(bridge, request("a"), request("b"))
    with pytest.raises(QueueFullError, match="2 requests are in flight") as caught:
        bridge.check_room(request("c"))
    assert caught.value.retry_after_s >= 1


def test_a_request_of_many_sequences_counts_with_all_of_them(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(max_tokens=100)
    fill(bridge, request("a", n=9))
    with pytest.raises(QueueFullError, match="requests for up to 90 tokens are in flight"):
        bridge.check_room(request("b", n=2))
    bridge.check_room(request("b"))


def test_an_empty_queue_has_room_for_any_request(make_bridge: MakeBridge) -> None:
    """Else one that is larger than the queue could never be served."""
    make_bridge(max_tokens=100).check_room(request("a", n=128))


def test_one_key_leaves_a_quarter_of_the_queue_to_others(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(max_requests=8)
    fill(bridge, *(request(f"a{number}", key="a") for number in range(6)))
    with pytest.raises(QueueFullError, match="6 requests of this key are in flight"):
        bridge.check_room(request("a6", key="a"))
    bridge.check_room(request("b", key="b"))
    fill(bridge, request("c"), request("d"))
    with pytest.raises(QueueFullError, match="8 requests are in flight"):
        bridge.check_room(request("b", key="b"))


def test_a_queue_of_one_has_room_for_a_key(make_bridge: MakeBridge) -> None:
    make_bridge(max_requests=1).check_room(request("a", key="a"))


def test_who_has_an_answer_makes_room(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(max_requests=4)
    asked = [request(f"a{number}", key="a") for number in range(3)]
    fill(bridge, *asked)
    assert bridge.num_of("a") == 3
    for one in asked:
        receipt = Receipt(one.request_id, "m", "completed", 0.0, "final", "measured:x", True)
        bridge._deliver(set(), [receipt])
    assert (bridge.num_of("a"), bridge.num_in_flight, bridge._of_key) == (0, 0, {})
    fill(bridge, *asked)
    bridge._break_all()
    bridge.check_room(request("a", key="a"))
