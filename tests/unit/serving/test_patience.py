"""A body may pause, and may be slow, but not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.errors import ApiError
from serving.patience import SLOWEST_BYTES_PER_S, Patience

TIMEOUT_S = 0.2


def read(*parts: tuple[float, int], ends: bool = True) -> int:
    """How much of a body is read whose parts come after so many seconds."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        after_s, size = left.pop(0)
        await asyncio.sleep(after_s)
        return {"type": "http.request", "body": b" " * size, "more_body": bool(left) or not ends}

    total = 0

    async def app(_: Any, receive: Any, __: Any) -> None:
        nonlocal total
        more = True
        while more:
            message = await receive()
            total += len(message["body"])
            more = message["more_body"]

    async def send(_: Any) -> None:
        return None

    asyncio.run(Patience(app, TIMEOUT_S)({"type": "http"}, receive, send))
    return total


def test_a_body_that_is_there_is_read() -> None:
    assert read((0, 1000), (0, 1000)) == 2000


def test_a_body_that_stops_is_given_up() -> None:
    """However much of it has come before."""
    with pytest.raises(ApiError) as caught:
        read((0, 1000 * SLOWEST_BYTES_PER_S), ends=False)
    assert (caught.value.status, caught.value.code) == (408, "body_timeout")
    assert caught.value.headers == {"Connection": "close"}


def test_a_body_that_drips_is_given_up() -> None:
    with pytest.raises(ApiError):
        read(*[(TIMEOUT_S / 4, 1)] * 20)


def test_time_that_the_app_takes_does_not_count() -> None:
    async def slowly(_: Any, receive: Any, __: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(TIMEOUT_S)
            assert (await receive())["body"] == b"x"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(_: Any) -> None:
        return None

    asyncio.run(Patience(slowly, TIMEOUT_S)({"type": "http"}, receive, send))


def test_who_waits_for_a_client_to_leave_waits_on() -> None:
    async def run() -> None:
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.sleep(2 * TIMEOUT_S)
            return {"type": "http.disconnect"}

        async def app(_: Any, receive: Any, __: Any) -> None:
            await receive()
            assert (await receive())["type"] == "http.disconnect"

        async def send(_: Any) -> None:
            return None

        await Patience(app, TIMEOUT_S)({"type": "http"}, receive, send)

    asyncio.run(run())
