"""The lines of the log: one for each request, whatever a client has sent."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from serving.config import HttpOptions
from serving.request_log import (
    Entry,
    LineWriter,
    Log,
    RequestLog,
    json_line,
    request_log,
    text_line,
)
from tests.waiting import PATIENCE_S

ENTRY = Entry(
    time="2026-01-02T03:04:05.678+00:00",
    status=200,
    method="POST",
    path="/v1/completions",
    id="cmpl-1",
    key="key-0123",
    model="bundled",
    prompt_tokens=17,
    completion_tokens=80,
    joules=14.8,
    ms=614.2,
)
LINE = (
    "2026-01-02T03:04:05.678+00:00 200 POST /v1/completions id=cmpl-1 key=key-0123 model=bundled"
    " prompt_tokens=17 completion_tokens=80 joules=14.8 ms=614.2"
)


def test_a_line_for_people() -> None:
    assert text_line(ENTRY) == LINE
    assert "joules=- ms" in text_line(replace(ENTRY, joules=None))


def test_a_line_for_programs() -> None:
    found = json.loads(json_line(ENTRY))
    assert found["path"] == "/v1/completions"
    assert found["joules"] == 14.8
    assert list(found) == list(Entry.__dataclass_fields__)


@pytest.mark.parametrize(
    "path",
    ["/a\n2026 200 GET /", "/a 500 key=x", "/\x1b[2J", "/\u2028\u202e", "/\udcff", "/a\r", "/%0a"],
)
def test_what_a_client_sent_stays_in_its_field(path: str) -> None:
    entry = replace(ENTRY, path=path, model=path)
    line = text_line(entry)
    assert len(line.split(" ")) == len(LINE.split(" "))
    assert line.isascii()
    assert line.isprintable()
    told = json_line(entry)
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["path"] == path


def written(options: HttpOptions, *entries: Entry) -> str:
    stream = Shown()
    with request_log(options, stream) as log:
        if log is not None:
            for entry in entries:
                log(entry)
    return stream.text


def test_lines_are_written_before_the_server_ends() -> None:
    assert written(HttpOptions(), ENTRY, ENTRY) == f"{LINE}\n{LINE}\n"
    assert json.loads(written(HttpOptions(log="json"), ENTRY))["ms"] == 614.2
    assert written(HttpOptions(log="off"), ENTRY) == ""
    assert written(HttpOptions()) == ""


class Shown(io.RawIOBase):
    """Keeps what is written, a little at a time as pipes may."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def write(self, data: Any) -> int:
        piece = bytes(data[:100])
        self.text += piece.decode()
        return len(piece)


class Stuck(Shown):
    """Nobody reads what is written until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.release = threading.Event(), threading.Event()

    def write(self, data: Any) -> int:
        self.reached.set()
        assert self.release.wait(PATIENCE_S)
        return super().write(data)


def test_lines_that_nobody_reads_hold_nobody_up() -> None:
    stream = Stuck()
    writer = LineWriter(stream, most_waiting=2)
    writer.write("0")
    assert stream.reached.wait(PATIENCE_S)
    for number in range(1, 10):
        writer.write(str(number))
    stream.release.set()
    writer.close()
    assert stream.text.split() == ["0", "1", "2"]


def test_a_reader_that_has_gone_does_no_harm() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.FileIO(writing, "w") as stream:
        writer = LineWriter(stream)
        for _ in range(3):
            writer.write("x" * 10_000)
        writer.close()
        writer.write("more")


def told_of(app: Any, log: list[Entry]) -> None:
    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/x" * 1000, "headers": []}
        sink: Log = log.append
        await RequestLog(app, sink)(scope, None, _ignored)  # type: ignore[arg-type]

    asyncio.run(run())


async def _ignored(_: Any) -> None:
    return None


def test_what_fails_is_told_as_a_failure() -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    log: list[Entry] = []
    with pytest.raises(ZeroDivisionError):
        told_of(broken, log)
    assert [(one.status, len(one.path)) for one in log] == [(500, 256)]
