"""One HTTP request given to an ASGI app without a socket.

Contract: yields a `Head`, then `Part`s, the last with `more` False. Closing the iterator early is
the client going away: the app hears `http.disconnect`, and is waited for. ASGI 3.0, HTTP only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from serving.cluster.wire import BodyPart, Call, Head

Message = MutableMapping[str, Any]
App = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[Message]],
        Callable[[Message], Awaitable[None]],
    ],
    Awaitable[None],
]


class _Exchange:
    """The two ends that an app sees of one request."""

    def __init__(self, body: bytes) -> None:
        self.answers: asyncio.Queue[Message | None] = asyncio.Queue()
        self.gone = asyncio.Event()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        """The body once, then nothing until the client has gone."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a part of the answer."""
        if self.gone.is_set():
            raise OSError("the client has gone")
        self.answers.put_nowait(message)

    async def run(self, app: App, scope: MutableMapping[str, Any]) -> None:
        """Run the app to its end, and say that it has come."""
        try:
            await app(scope, self.receive, self.send)
        finally:
            self.answers.put_nowait(None)


async def answer_of(app: App, call: Call) -> AsyncIterator[Head | BodyPart]:
    """The app's answer to a call, part by part."""
    exchange = _Exchange(call.body)
    running = asyncio.create_task(exchange.run(app, scope_of(call)))
    try:
        while (message := await exchange.answers.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], tuple(message.get("headers", ())))
            else:
                yield BodyPart(message.get("body", b""), bool(message.get("more_body", False)))
        await running
    finally:
        exchange.gone.set()
        with contextlib.suppress(OSError):
            await running


def scope_of(call: Call) -> dict[str, Any]:
    """The call as ASGI describes it."""
    return {
        "type": "http",
        # As uvicorn says: from 2.4 on Starlette's streams do not listen for a client that goes.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": call.query,
        "root_path": "",
        "headers": list(call.headers),
        "client": None if call.client is None else (call.client, 0),
        "server": None,
    }
