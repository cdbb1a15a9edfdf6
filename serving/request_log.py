"""One line for each request, on standard output: who asked for what, and what it cost.

Contract: a line tells no word of a prompt or an answer, and whatever a client sent stays within its
field. Lines are written by a thread of their own; if nobody reads them they are dropped, and the
server goes on.

Not covered: connections that are refused before there is a request.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO, RawIOBase
from typing import Any, cast
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greenllm.energy.units import rounded
from serving.config import HttpOptions
from serving.keys.caller import Caller

STDOUT = 1
_MOST_WAITING = 10_000
_MOST_PATH_CHARACTERS = 256
_CLOSE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What is told of a request; None is unknown, or does not apply."""

    time: str
    status: int | None
    method: str
    path: str
    id: str | None
    key: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    joules: float | None
    ms: float


Log = Callable[[Entry], None]


def text_line(entry: Entry) -> str:
    """An entry for people: the time, the status, the route, then names with values."""
    first = (entry.time, _plain(entry.status), entry.method, _plain(entry.path))
    rest = list(asdict(entry).items())[len(first) :]
    return " ".join((*first, *(f"{name}={_plain(value)}" for name, value in rest)))


def json_line(entry: Entry) -> str:
    """An entry for programs."""
    return json.dumps(asdict(entry))


def _plain(value: object) -> str:
    """A value without spaces, line breaks and what terminals take for commands."""
    return "-" if value is None else quote(str(value), safe="/:@+,", errors="replace")


class LineWriter:
    """Writes lines in a thread of its own, which begins with the first line."""

    def __init__(self, stream: RawIOBase, most_waiting: int = _MOST_WAITING) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def write(self, line: str) -> None:
        """Have a line written, unless too many wait."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            return

    def close(self) -> None:
        """Write what waits, if somebody reads it."""
        if self._thread.ident is None:
            return
        try:
            self._lines.put(None, timeout=_CLOSE_TIMEOUT_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                data = f"{line}\n".encode()
                while data:
                    data = data[self._stream.write(data) or 0 :]
        except OSError:  # nobody reads any more
            return


@contextmanager
def request_log(options: HttpOptions, stream: RawIOBase | None = None) -> Iterator[Log | None]:
    """Where requests are told of while a server runs; None if they are not."""
    if options.log == "off":
        yield None
        return
    # Without a buffer nothing is left to be written when the process ends.
    writer = LineWriter(stream or FileIO(STDOUT, "w", closefd=False))
    line = json_line if options.log == "json" else text_line
    try:
        yield lambda entry: writer.write(line(entry))
    finally:
        writer.close()


class RequestLog:
    """ASGI middleware that tells of every request when its answer has ended."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, then tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head: dict[str, Any] = {}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
            await send(message)

        begun_s = time.perf_counter()
        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, noting)
        except Exception:
            head.setdefault("status", 500)
            raise
        finally:
            ms = round(1000 * (time.perf_counter() - begun_s), 1)
            self._log(self._entry(scope, head, ms))

    def _entry(self, scope: Scope, head: dict[str, Any], ms: float) -> Entry:
        answer = Headers(raw=head.get("headers", ()))
        return Entry(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            status=head.get("status"),
            method=scope["method"],
            path=scope["path"][:_MOST_PATH_CHARACTERS],
            id=answer.get("x-request-id"),
            key=caller_of(scope),
            ms=ms,
            **_cost(scope["state"], answer),
        )


def caller_of(scope: Scope) -> str | None:
    """The name of the key that a request came with; None without a valid one."""
    caller = scope["state"].get("caller")
    return None if caller is None else cast(Caller, caller).name


def _cost(state: dict[str, Any], answer: Headers) -> dict[str, Any]:
    """The model, tokens and joules of what was generated, as far as its receipt is there."""
    submission = state.get("submission")
    receipt = None if submission is None else submission.receipt
    told_j = answer.get("x-energy-joules")
    joules = receipt.total_j if receipt is not None else None if told_j is None else float(told_j)
    return {
        "model": None if submission is None else submission.request.echoed_model,
        "prompt_tokens": None if receipt is None else receipt.prompt_tokens,
        "completion_tokens": None if receipt is None else receipt.completion_tokens,
        **rounded({"joules": joules}),
    }
