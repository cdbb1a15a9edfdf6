"""Connections with a bound to their number, to the heads of requests, and to every wait.

Contract: uvicorn's protocol for HTTP/1.1, and beside it:
- A head that is too large is refused (431), and one that does not come in time (408).
- A client that does not read what it is sent loses its connection.
- Where there are too many connections, the one that has been silent longest makes room; where all
  have a request, the new one is refused (503).
- A client that has closed its side for writing still gets its answer.

Bodies that do not come are `patience`'s; idle connections between two requests are uvicorn's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.config import HttpOptions
from serving.errors import ApiError
from serving.limits import MOST_HEAD_BYTES, MOST_PIPELINED

# What a refused client still sends is thrown away for so long: it may be writing, not reading.
LINGER_S = 2.0
_FIRST_PROBE_S = 0.05
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BYTES_PER_FIELD = 4  # colon, space and line break


class BoundedProtocol(HttpToolsProtocol):
    """One connection; see the module. `options` are those of the class that `bounded` makes."""

    options: ClassVar[HttpOptions] = HttpOptions()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._part: Literal["none", "head", "body"] = "none"
        self._head_bytes = 0
        self._has_begun = False
        self._is_refused = False
        self._waiting_since_s: float | None = None
        self._refused_since_s: float | None = None
        self._unsent_bytes = 0
        self._stuck_since_s = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection if there is room, or if a silent one makes room."""
        super().connection_made(transport)
        self._waiting_since_s = self.loop.time()
        if len(self.connections) > self.options.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        silent = [
            one
            for one in others
            if one is not self and one.is_silent and not one.transport.is_closing()
        ]
        if silent:
            min(silent, key=lambda one: one._waiting_since_s or 0.0).transport.abort()
        else:
            self._refuse(503, "too many connections; try again later", ("Retry-After", "1"))

    @property
    def is_silent(self) -> bool:
        """Whether there is no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read on, within the bounds of a head."""
        if self._is_refused:
            return
        if self._part == "none" and self._waiting_since_s is None:
            self._waiting_since_s = self.loop.time()
        self._has_begun = False
        super().data_received(data)
        if self._part == "head" and not self._has_begun:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._part, self._head_bytes, self._has_begun = "head", 0, True
        self._waiting_since_s = self.loop.time()

    def on_headers_complete(self) -> None:
        """The head is there: start answering, unless it is too large."""
        self._part, self._waiting_since_s = "body", None
        if self._is_refused:
            return
        fields = sum(len(name) + len(value) + _BYTES_PER_FIELD for name, value in self.headers)
        if len(self.url) + fields > MOST_HEAD_BYTES:
            self._refuse_head()
        elif len(self.pipeline) >= MOST_PIPELINED:
            self._refuse(400, f"more than {MOST_PIPELINED} requests wait on this connection")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body comes."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there as a whole."""
        self._part = "none"
        if not self._is_refused:
            super().on_message_complete()
        if self.is_silent:  # the answer did not wait for the body
            self._waiting_since_s = self.loop.time()

    def on_response_complete(self) -> None:
        """A request is answered: what of it, or of the next, has begun to come has its time."""
        super().on_response_complete()
        self._waiting_since_s = None if self._part == "none" else self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, msg)

    def _refuse_head(self) -> None:
        self._refuse(431, f"the head of the request exceeds {MOST_HEAD_BYTES} bytes")

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        """Answer what is no request, unless another answer is under way, and hang up.

        What the client still sends is read for a while: one that is writing may not read.
        """
        self._is_refused, self._refused_since_s = True, self.loop.time()
        if self._can_answer():
            self.transport.write(_answer(ApiError(status, message), *headers))
            if self.transport.can_write_eof():
                self.transport.write_eof()
                return
        self.transport.close()

    def _can_answer(self) -> bool:
        """Whether nobody else is answering; a request that waits for its body is given up."""
        if self.is_silent:
            return True
        if self.pipeline or self.cycle.response_started:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client writes no more; returns whether it may still read.

        One that has left altogether looks the same until it is sent something. Until the answer
        begins it is sent interim answers, so that nothing is computed for nobody.
        """
        cycle = self.cycle
        may_read = (
            cycle is not None
            and not (cycle.more_body or cycle.response_started or self._is_refused)
            and self.scope["http_version"] == "1.1"
            and self.transport.can_write_eof()
        )
        if may_read:
            cycle.keep_alive = False
            self.loop.call_later(_FIRST_PROBE_S, self._probe, _FIRST_PROBE_S)
        return may_read

    def _probe(self, waited_s: float) -> None:
        if not (self.cycle.response_started or self.transport.is_closing()):
            self.transport.write(_PROBE)
            self.loop.call_later(min(waited_s, 1.0), self._probe, 2 * waited_s)

    def end_overdue(self) -> None:
        """End what has waited for its client too long; called every second."""
        now_s, timeout_s = self.loop.time(), self.options.client_timeout_s
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes == 0 or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._stuck_since_s = unsent_bytes, now_s
        is_stuck = _is_over(self._stuck_since_s, timeout_s, now_s)
        if is_stuck or _is_over(self._refused_since_s, LINGER_S, now_s):
            self.transport.abort()
        elif _is_over(self._waiting_since_s, timeout_s, now_s) and self._is_due():
            self._end_silence()

    def _is_due(self) -> bool:
        """Whether it is the client's turn; it is not while it waits for an answer."""
        return self.is_silent and not self._is_refused

    def _end_silence(self) -> None:
        if self._part == "head":
            self._refuse(408, f"no whole head came within {self.options.client_timeout_s:g} s")
        else:
            self.transport.close()


def _answer(error: ApiError, *headers: tuple[str, str]) -> bytes:
    """An error object as HTTP."""
    body = json.dumps(error.body()).encode()
    fields = [
        *headers,
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body


def _is_over(since_s: float | None, timeout_s: float, now_s: float) -> bool:
    return since_s is not None and now_s - since_s >= timeout_s


def bounded(options: HttpOptions) -> type[BoundedProtocol]:
    """The protocol of connections to a server with these options."""
    return type("ServerProtocol", (BoundedProtocol,), {"options": options})


def end_overdue(connections: Iterable[object]) -> None:
    """End the connections whose clients have kept them waiting too long."""
    for one in list(connections):
        if isinstance(one, BoundedProtocol):
            one.end_overdue()
