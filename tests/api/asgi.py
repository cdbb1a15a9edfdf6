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

from tests.waiting import PATIENCE_S

log = logging.getLogger(__name__)
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
        """Let requests end, then leave the lifespan; once is enough."""
        if not self._loop.is_closed():
            self.call(self._stopping.set)
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
        return self.begin(request).response()

    def begin(self, request: httpx.Request) -> Exchange:
        """Send a request, and wait for nothing."""
        exchange = Exchange(request, self._loop)
        self.call(lambda: self._run(exchange))
        return exchange

    def _run(self, exchange: Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._app))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


class Exchange(httpx.SyncByteStream):
    """One request and its answer: the app's ends on the event loop, the client's outside."""

    def __init__(self, request: httpx.Request, loop: asyncio.AbstractEventLoop) -> None:
        assert isinstance(request.stream, httpx.SyncByteStream)
        self._request, self._loop = request, loop
        self._parts: Iterator[bytes] | None = iter(request.stream)
        self._answer: queue.SimpleQueue[Message | Exception | None] = queue.SimpleQueue()
        self._gone = asyncio.Event()

    async def run(self, app: FastAPI) -> None:
        url = self._request.url
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
            "http_version": "1.1", "method": self._request.method, "scheme": url.scheme,
            "path": url.path, "raw_path": url.raw_path.partition(b"?")[0], "root_path": "",
            "query_string": url.query, "client": ("127.0.0.1", 1), "server": (url.host, 80),
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
        }  # fmt: skip
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            log.exception("the app raised")
        finally:
            self._answer.put(None)

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

    def response(self) -> httpx.Response:
        """The answer, of which the head is there."""
        head = next(self._messages(), None)
        if head is None:
            raise httpx.RemoteProtocolError("the app gave no answer", request=self._request)
        return httpx.Response(head["status"], headers=head["headers"], stream=self)

    def _messages(self) -> Iterator[Message]:
        while (found := self._answer.get(timeout=PATIENCE_S)) is not None:
            if isinstance(found, Exception):
                raise found
            yield found

    def __iter__(self) -> Iterator[bytes]:
        return (message.get("body", b"") for message in self._messages())

    def close(self) -> None:
        """Go away; an app that has not finished hears of it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gone.set)

    def leave(self) -> None:
        """Go away, and wait until the app has done with it."""
        self.close()
        list(self._messages())
