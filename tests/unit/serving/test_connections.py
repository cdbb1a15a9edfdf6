"""Connections have bounds, and every wait for a client has an end. Over real sockets."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.config import HttpOptions
from serving.front_door import RESERVED_DESCRIPTORS, FrontDoor, num_that_fit, take_port
from serving.limits import MOST_HEAD_BYTES, MOST_PIPELINED
from tests.waiting import PATIENCE_S

SOON_S = 0.5
GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class House:
    """A tiny app behind a door: `/slow` waits until it is released, `/large` says a lot."""

    def __init__(self, **options: Any) -> None:
        self.release, self.reached, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ready = asyncio.Event()
        self._listener = take_port("127.0.0.1", 0)
        self.door = FrontDoor(
            self,
            HttpOptions(**options),
            on_ready=self._ready.set,
            on_signal=lambda: None,
            on_drained=lambda: None,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(self._gone(receive))
        if scope["path"] == "/slow":
            self.reached.set()
            released = asyncio.create_task(self.release.wait())
            await asyncio.wait((gone, released), return_when=asyncio.FIRST_COMPLETED)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["path"] == "/large" and not gone.done():
            await send({"type": "http.response.body", "body": b" " * 1_000_000, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": scope["path"].encode()})
        gone.cancel()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        serving = asyncio.create_task(self.door.serve(sockets=[self._listener]))
        await self._ready.wait()
        yield
        self.release.set()
        self.door.should_exit = self.door.force_exit = True
        await serving
        self._listener.close()

    async def connect(self, sent: bytes = b"") -> Pair:
        reader, writer = await asyncio.open_connection(*self._listener.getsockname())
        writer.write(sent)
        return reader, writer

    async def ask(self, sent: bytes) -> bytes:
        """All that comes until the server hangs up."""
        reader, writer = await self.connect(sent)
        try:
            return await reader.read()
        finally:
            writer.close()


def visit(act: Callable[[House], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        house = House(**options)
        async with house.open():
            await act(house)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def check_refusal(answer: bytes, status: int, *words: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), answer
    assert b"connection: close" in head.lower()
    message = json.loads(body)["error"]["message"]
    assert all(word in message for word in words), message


def test_a_head_has_a_bound() -> None:
    """One header without an end, many headers, a long path: sent as fast as they are taken."""

    async def act(house: House) -> None:
        heads: list[tuple[bytes, bytes]] = [
            (b"GET / HTTP/1.1\r\nA: ", b"x" * 65_536),
            (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
            (b"GET /", b"x" * 65_536),
        ]
        for begin, more in heads:
            reader, writer = await house.connect(begin)
            for _ in range(100):
                writer.write(more)
                await writer.drain()
            check_refusal(await reader.read(), 431, str(MOST_HEAD_BYTES))
            writer.close()
        whole = b"GET / HTTP/1.1\r\nA: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n"
        check_refusal(await house.ask(whole), 431, str(MOST_HEAD_BYTES))
        fits = b"GET / HTTP/1.1\r\nConnection: close\r\nA: " + b"x" * 30_000 + b"\r\n\r\n"
        assert (await house.ask(fits)).endswith(b"/\r\n0\r\n\r\n")

    visit(act)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_who_says_nothing_is_hung_up_on(sent: bytes) -> None:
    async def act(house: House) -> None:
        assert await house.ask(sent) == b""

    visit(act, client_timeout_s=SOON_S)


def test_a_head_that_does_not_come_is_told_so() -> None:
    """Also one that comes too slowly, and one after an answer."""

    async def act(house: House) -> None:
        check_refusal(await house.ask(b"GET / HTTP/1.1\r\nHost"), 408, "0.5 s")
        answers = await house.ask(GET % b"/a" + b"GET /b HT")
        first, last = answers.split(b"\r\n0\r\n\r\n", 1)
        assert first.endswith(b"/a")
        check_refusal(last, 408, "head")
        reader, writer = await house.connect(b"GET /")
        while not reader.at_eof():
            writer.write(b"x")
            await asyncio.sleep(SOON_S / 4)
            if reader._buffer:  # type: ignore[attr-defined]
                break
        check_refusal(await reader.read(), 408)
        writer.close()

    visit(act, client_timeout_s=SOON_S)


def test_a_body_that_goes_on_after_the_answer_has_an_end() -> None:
    """As it may where a key is wrong; a connection that then says nothing has one, too."""

    async def act(house: House) -> None:
        reader, writer = await house.connect(
            b"POST /at-once HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert b"200 OK" in await reader.readline()
        while not writer.is_closing() and not reader.at_eof():
            writer.write(b" " * 10)
            await asyncio.sleep(SOON_S / 10)
            await asyncio.wait((asyncio.ensure_future(reader.read(1000)),), timeout=0.01)
        writer.transport.abort()
        head = b"POST /at-once HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
        reader, writer = await house.connect(head + b"ab")
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"c")
        assert await reader.read() == b""
        writer.close()

    visit(act, client_timeout_s=SOON_S)


def test_what_is_no_http_is_an_error_object() -> None:
    async def act(house: House) -> None:
        check_refusal(await house.ask(b"GARBAGE\r\n\r\n"), 400)
        chunked = b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        check_refusal(await house.ask(chunked), 400)

    visit(act)


def test_a_client_that_does_not_read_is_hung_up_on() -> None:
    async def act(house: House) -> None:
        _, writer = await house.connect(GET % b"/large")
        await house.left.wait()
        writer.transport.abort()

    visit(act, client_timeout_s=SOON_S)


def test_silent_connections_make_room() -> None:
    async def act(house: House) -> None:
        silent = [await house.connect() for _ in range(5)]
        for _ in range(3):
            reader, writer = await house.connect(GET % b"/here")
            assert b"200 OK" in await reader.readline()
            writer.close()
        assert await silent[0][0].read() == b"", "the one that was silent longest"
        assert len(house.door.server_state.connections) <= 2
        for _, writer in silent:
            writer.close()

    visit(act, max_connections=2)


def test_many_connections_at_once_make_room_for_each_other() -> None:
    async def act(house: House) -> None:
        pairs = await asyncio.gather(*(house.connect() for _ in range(50)))
        while len(house.door.server_state.connections) > 2:
            await asyncio.sleep(0.01)
        ends = await asyncio.gather(*(closes(reader) for reader, _ in pairs))
        assert sum(ends) == 48
        for _, writer in pairs:
            writer.transport.abort()

    async def closes(reader: asyncio.StreamReader) -> bool:
        try:
            return await asyncio.wait_for(reader.read(), SOON_S) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    visit(act, max_connections=2)


def test_where_all_are_busy_a_new_one_is_refused() -> None:
    async def act(house: House) -> None:
        busy = [await house.connect(GET % b"/slow") for _ in range(2)]
        while len(house.door.server_state.tasks) < 2:
            await asyncio.sleep(0.01)
        answer = await house.ask(b"")
        check_refusal(answer, 503, "connections")
        assert b"Retry-After: 1\r\n" in answer
        house.release.set()
        for reader, writer in busy:
            assert b"200 OK" in await reader.readline()
            writer.close()

    visit(act, max_connections=2)


def test_requests_that_wait_on_one_connection_have_a_bound() -> None:
    async def act(house: House) -> None:
        reader, writer = await house.connect(GET % b"/slow" + GET % b"/a" * (2 * MOST_PIPELINED))
        assert await reader.read() == b""
        writer.close()

    visit(act)


@pytest.mark.parametrize("path", [b"/slow", b"/at-once"])
def test_a_client_that_writes_no_more_gets_its_answer(path: bytes) -> None:
    async def act(house: House) -> None:
        reader, writer = await house.connect(GET % path)
        writer.write_eof()
        if path == b"/slow":
            await house.reached.wait()
            assert b"100 Continue" in await reader.readline(), "to see whether it has left"
            house.release.set()
        answer = await reader.read()
        assert b"200 OK" in answer
        assert path in answer
        writer.close()

    visit(act)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_leaves_is_noticed(version: bytes) -> None:
    async def act(house: House) -> None:
        _, writer = await house.connect(b"GET /slow HTTP/" + version + b"\r\n\r\n")
        await house.reached.wait()
        writer.close()
        await house.left.wait()

    visit(act)


@pytest.fixture
def descriptors() -> Iterator[Callable[[int], None]]:
    """Sets how many files this process may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_there_are_descriptors_for_all_connections(descriptors: Callable[[int], None]) -> None:
    descriptors(300)
    assert num_that_fit(100) == 100
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    assert num_that_fit(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 400 + RESERVED_DESCRIPTORS


def test_connections_that_do_not_fit_are_told(caplog: pytest.LogCaptureFixture) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no limit")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert num_that_fit(hard) == hard - RESERVED_DESCRIPTORS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "ulimit -n" in caplog.text
