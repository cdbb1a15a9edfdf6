"""Bodies of requests: read up to a limit, counted all together, worked on beside the event loop.

Contract: a body counts from its first byte until the caller has done with it; where all of them
together would exceed their limit, a long one that grows is refused. What is too large is read on
for a while and thrown away, because a client that is still writing may not see an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request as HttpRequest

from serving.errors import ApiError
from serving.limits import LONG_BODY_BYTES

T = TypeVar("T")
# How much of a body that is too large is thrown away before its client is told, in times its limit.
DISCARDED_LIMITS = 4
# Each encodes a text of up to `MOST_CHARACTERS`, which takes memory.
LONG_AT_A_TIME = 2


class Bodies:
    """Reads bodies of up to `largest_mb`, and of up to `together_mb` at a time."""

    def __init__(self, *, largest_mb: float, together_mb: float) -> None:
        self.held_bytes = 0
        self._largest_mb = largest_mb
        self._largest = int(largest_mb * 1_000_000)
        self._together = int(together_mb * 1_000_000)
        self._turns = asyncio.Semaphore(LONG_AT_A_TIME)

    @asynccontextmanager
    async def read(self, http: HttpRequest) -> AsyncIterator[bytes]:
        """A request's body, which counts as long as the context lasts.

        Raises:
            ApiError: it is too large (413), or there are too many (503).
        """
        self._refuse_announced(http)
        body, size = bytearray(), 0
        try:
            async for part in http.stream():
                size += len(part)
                if size > self._largest:
                    self._let_go(body)
                    if size > DISCARDED_LIMITS * self._largest:
                        break
                else:
                    self._hold(body, part)
            if size > self._largest:
                raise self._too_large()
            yield bytes(body)
        finally:
            self._let_go(body)

    def _refuse_announced(self, http: HttpRequest) -> None:
        """Not even a beginning is read of what is far too large, or waits for leave to be sent."""
        announced = http.headers.get("content-length", "0")
        size = int(announced) if announced.isdigit() else 0
        waits = "expect" in http.headers
        if size > (1 if waits else DISCARDED_LIMITS) * self._largest:
            raise self._too_large()

    def _hold(self, body: bytearray, part: bytes) -> None:
        is_long = len(body) + len(part) > LONG_BODY_BYTES
        if is_long and self.held_bytes + len(part) > self._together:
            raise ApiError(
                503,
                "the bodies of all requests together exceed --max-buffered-mb; try again later",
                code="bodies_full",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        body += part
        self.held_bytes += len(part)

    def _let_go(self, body: bytearray) -> None:
        self.held_bytes -= len(body)
        body.clear()

    def _too_large(self) -> ApiError:
        text = f"the body exceeds {self._largest_mb:g} MB"
        return ApiError(413, text, headers={"Connection": "close"})

    async def work(self, size: int, act: Callable[[], T]) -> T:
        """Do what takes as long as a body of a size is: short work here, long work beside.

        Long work waits for its turn, so that it can take neither all threads nor all memory.
        """
        if size <= LONG_BODY_BYTES:
            return act()
        async with self._turns:
            return await asyncio.to_thread(act)
