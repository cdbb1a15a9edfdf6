"""The port is taken first; uvicorn tells when it is up, and when time is over."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving.config import HttpOptions
from serving.front_door import FrontDoor, StartError, take_port

PATIENCE_S = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    taken = take_port("127.0.0.1", 0)
    yield taken
    taken.close()


def test_a_port_is_taken_at_once(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with socket.create_connection((host, port), timeout=PATIENCE_S) as client:
        assert client.getpeername() == (host, port)


def test_a_port_in_use_is_told_with_what_to_do(listener: socket.socket) -> None:
    _, port = listener.getsockname()
    with pytest.raises(StartError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*--port$"):
        take_port("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0"):
        take_port("192.0.2.1", 0)


def test_an_address_with_colons_is_of_the_newer_kind() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        taken = take_port("::1", 0)
    except StartError as error:
        pytest.skip(str(error))
    assert taken.family == socket.AF_INET6
    taken.close()


class House:
    """A door before a tiny app, and what it told."""

    def __init__(self, listener: socket.socket, drain_timeout_s: float, **options: Any) -> None:
        self.told: list[str] = []
        self.ready = asyncio.Event()
        self.reached = asyncio.Event()
        self.release = asyncio.Event()
        self.listener = listener
        self.door = FrontDoor(
            self,
            HttpOptions(drain_timeout_s=drain_timeout_s, **options),
            on_ready=self.on_ready,
            on_signal=lambda: self.told.append("signal"),
            on_drained=self.on_drained,
        )

    def on_ready(self) -> None:
        self.told.append("ready")
        self.ready.set()

    def on_drained(self) -> None:
        self.told.append("drained")
        self.release.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.reached.set()
            await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def serve(self) -> asyncio.Task[None]:
        serving = asyncio.create_task(self.door.serve(sockets=[self.listener]))
        await self.ready.wait()
        return serving

    async def get(self, path: str) -> str:
        _, port = self.listener.getsockname()
        async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{port}{path}")).text


def test_it_tells_when_it_is_up_and_a_signal_ends_it_in_peace(listener: socket.socket) -> None:
    async def run() -> list[str]:
        house = House(listener, drain_timeout_s=60.0)
        serving = await house.serve()
        house.told.append(await house.get("/"))
        signal.raise_signal(signal.SIGTERM)
        await serving
        return house.told

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE_S)) == ["ready", "ok", "signal"]


@pytest.mark.parametrize(
    ("timeout_s", "told"), [(0.05, ["ready", "signal", "drained"]), (1.0, ["ready", "signal"])]
)
def test_running_requests_get_their_time(
    listener: socket.socket, timeout_s: float, told: list[str]
) -> None:
    async def run() -> list[str]:
        house = House(listener, timeout_s)
        serving = await house.serve()
        asking = asyncio.create_task(house.get("/slow"))
        await house.reached.wait()
        house.door.handle_exit(signal.SIGTERM, None)
        if timeout_s >= 1:
            await asyncio.sleep(0.2)
            assert not serving.done()
            house.release.set()
        assert await asking == "ok"
        await serving
        await asyncio.sleep(timeout_s)
        return house.told

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE_S)) == told


@pytest.mark.parametrize(
    ("signals", "forced"),
    [
        ([signal.SIGINT], False),
        ([signal.SIGINT, signal.SIGINT], True),
        ([signal.SIGTERM, signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGINT], True),
    ],
)
def test_only_a_second_interrupt_does_not_wait(
    listener: socket.socket, signals: list[int], forced: bool
) -> None:
    async def run() -> FrontDoor:
        door = House(listener, 1.0).door
        for number in signals:
            door.handle_exit(number, None)
        return door

    door = asyncio.run(run())
    assert (door.should_exit, door.force_exit) == (True, forced)
