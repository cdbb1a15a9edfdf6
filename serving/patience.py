"""How long a server waits for the body of a request: an ASGI middleware.

Contract: a body may pause for the timeout, and comes at 10 kB a second or faster on average; else
its request is refused (408). Time in which nobody asks for the body does not count.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError

SLOWEST_BYTES_PER_S = 10_000


class Patience:
    """Ends the wait for bodies that do not come."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose body may not come."""
        if scope["type"] == "http":
            receive = _Body(receive, self._timeout_s).receive
        await self._app(scope, receive, send)


class _Body:
    """One body, and how long was waited for it."""

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._left_s = timeout_s
        self._is_whole = False

    async def receive(self) -> Message:
        """The next part."""
        if self._is_whole:
            return await self._receive()
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body did not come within {self._timeout_s:g} s",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from error
        earned_s = len(message.get("body", b"")) / SLOWEST_BYTES_PER_S
        left_s = self._left_s + earned_s - (time.monotonic() - begun_s)
        self._left_s = min(left_s, self._timeout_s)
        self._is_whole = not message.get("more_body", False)
        return message
