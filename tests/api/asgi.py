"""An ASGI app behind httpx's clients in this process: its lifespan, and streams as they are sent.

Contract: an app sees what uvicorn would show it. A body comes in the parts that the client gives;
`http.disconnect` comes once the client has closed the answer, or has all of it. The app runs on an
event loop in a thread of its own, so that tests and the official client may block.

Not covered: sockets, the syntax of HTTP, back pressure.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import httpx
from fastapi import FastAPI

log = logging.getLogger(__name__)
PATIENCE_S = 120.0
Message = MutableMapping[str, Any]


class AppTransport(httpx.BaseTransport):
    """Runs an app between `start` and `stop`, and sends it requests."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._running: set[asyncio.Task[None]] = set()
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="app")

    def start(self) -> None:
        """Enter the app's lifespan; what goes wrong there is raised here."""
        self._thread.start()
        if (error := self._started.get(timeout=PATIENCE_S)) is not None:
            raise error

    def stop(self) -> None:
        """Let requests end, then leave the lifespan."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the app does not stop"

    async def _live(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._app.router.lifespan_context(self._app):
                self._started.put(None)
                await self._stopping.wait()
                await asyncio.gather(*self._running)
        except BaseException as error:
            self._started.put(error)
            raise

    def call(self, act: Callable[[], object]) -> None:
        """Have something done on the app's event loop."""
        self._loop.call_soon_threadsafe(act)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns when the head of the answer is there."""
        exchange = _Exchange(request, self._loop)
        self._loop.call_soon_threadsafe(self._begin, exchange)
        return exchange.response()

    def _begin(self, exchange: _Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._app))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


class _Exchange(httpx.SyncByteStream):
    """One request and its answer: the app's ends on the event loop, the client's outside."""

    def __init__(self, request: httpx.Request, loop: asyncio.AbstractEventLoop) -> None:
        assert isinstance(request.stream, httpx.SyncByteStream)
        self._request, self._loop = request, loop
        self._parts: Iterator[bytes] | None = iter(request.stream)
        self._answer: queue.SimpleQueue[Message | BaseException | None] = queue.SimpleQueue()
        self._gone = asyncio.Event()

    async def run(self, app: FastAPI) -> None:
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception:
            log.exception("the app raised")
        finally:
            self._answer.put(None)

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": (url.host, 80),
        }

    async def _receive(self) -> Message:
        if self._parts is not None:
            try:
                part = await asyncio.to_thread(next, self._parts, None)
            except Exception as error:  # the client has broken off
                self._answer.put(error)
                self._gone.set()
            else:
                self._parts = None if part is None else self._parts
                return {"type": "http.request", "body": part or b"", "more_body": part is not None}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            return
        self._answer.put(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._gone.set()

    def _next(self) -> Message | None:
        try:
            found = self._answer.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise httpx.ReadTimeout("the app says nothing", request=self._request) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def response(self) -> httpx.Response:
        """The answer, of which the head is there."""
        head = self._next()
        if head is None:
            raise httpx.RemoteProtocolError("the app gave no answer", request=self._request)
        return httpx.Response(head["status"], headers=head["headers"], stream=self)

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._next()) is not None:
            yield message.get("body", b"")

    def close(self) -> None:
        """Go away; an app that has not finished hears of it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gone.set)
