"""Clients that do not behave: slow ones, ones that leave, and bodies that nobody should send.

Contract: each call ends, and says what the client was told until then. What a client sends byte by
byte it also reads so. Not covered: TLS; HTTP/2.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress

import aiohttp

from evals.chaos.asking import (
    COMPLETIONS,
    CUT,
    LEFT,
    SILENT,
    UNREACHABLE,
    Question,
    Reply,
    whole_answer,
)

_REQUEST_ID = re.compile(rb"(?im)^x-request-id: *(\S+)")
_PATIENCE_S = 600.0
_FEW_BYTES = 64


async def leave_after(
    http: aiohttp.ClientSession, url: str, question: Question, seconds: float
) -> Reply:
    """Ask, and be gone after a while, whatever has come until then."""
    told: tuple[int | None, str | None] = (None, None)
    try:
        async with asyncio.timeout(seconds):
            asked = http.post(url + question.path, json=question.body, headers=question.headers)
            async with asked as response:
                told = (response.status, response.headers.get("X-Request-Id"))
                while await response.content.readany():
                    pass
    except TimeoutError:
        return Reply(*told, trouble=LEFT)
    except (aiohttp.ClientError, OSError):
        return Reply(*told, trouble=CUT if told[0] else UNREACHABLE)
    return Reply(*told, trouble=None if told[0] == 200 else str(told[0]))


async def exchange(port: int, raw: bytes, *, byte_s: float = 0.0) -> Reply:
    """Send bytes and read what comes until the server hangs up.

    With `byte_s` each byte takes that long, there and back.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            limit = _FEW_BYTES if byte_s else 2**16
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
            try:
                return _reply(await _talk(reader, writer, raw, byte_s))
            finally:
                writer.transport.abort()
    except TimeoutError:
        return Reply(trouble=SILENT)
    except OSError:
        return Reply(trouble=UNREACHABLE)


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, byte_s: float
) -> bytes:
    size = 1 if byte_s else max(1, len(raw))
    received = bytearray()
    with suppress(ConnectionError):  # who refuses a request may hang up before its end
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await writer.drain()
            await asyncio.sleep(byte_s)
    with suppress(ConnectionError):
        while found := await reader.read(1 if byte_s else -1):
            received += found
            await asyncio.sleep(byte_s / 10)
    return bytes(received)


def _reply(received: bytes) -> Reply:
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        return Reply(trouble=UNREACHABLE)
    status, found = int(words[1]), _REQUEST_ID.search(head)
    request_id = found[1].decode("ascii", "replace") if found else None
    if status != 200:
        return Reply(status, request_id, trouble=str(status))
    try:
        return Reply(status, request_id, whole_answer(body))
    except (ValueError, LookupError):
        return Reply(status, request_id, trouble=CUT)


def request(body: bytes, *headers: str, path: str = COMPLETIONS, length: str = "") -> bytes:
    """A request as bytes; `length` instead of the body's true one."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    lines += ["Content-Type: application/json", f"Content-Length: {length or len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def question_bytes(question: Question) -> bytes:
    """A question as an HTTP request that hangs up afterwards."""
    own = [f"{name}: {text}" for name, text in question.headers.items() if name != "Content-Type"]
    return request(json.dumps(question.body).encode(), *own, path=question.path)


def hostile(model: str) -> Iterator[tuple[str, bytes]]:
    """Requests that are not to be served, by what is wrong with them."""
    good = json.dumps({"model": model, "prompt": "a", "max_tokens": 1}).encode()

    def with_prompt(prompt: str) -> bytes:
        return request(f'{{"model": "{model}", "max_tokens": 1, "prompt": {prompt}}}'.encode())

    yield "a megabyte of ids and a list", with_prompt("[" + "1," * 500_000 + "[]]")
    yield "deep lists", with_prompt("[" * 100_000 + "]" * 100_000)
    yield "deep objects", with_prompt('{"a":' * 50_000 + "1" + "}" * 50_000)
    yield "no text", with_prompt('{"a": [null, true]}')
    yield "a number of 100,000 digits", with_prompt("9" * 100_000)
    yield "ids beyond all", with_prompt("[1e400, 123456789012345678901234567890]")
    yield "half a surrogate pair", with_prompt('"\\ud800"')
    yield "types", request(b'{"model": 7, "prompt": null, "n": "many", "stop": {"a": 1}}')
    yield "numbers", request(good[:-1] + b', "temperature": 1e999, "seed": -1e308, "n": 1e9}')
    yield "nothing", request(b"")
    yield "no JSON", request(b"\x00" * 1000)
    yield "invalid UTF-8", request(good.replace(b'"a"', b'"\xff\xfe\xc0\x80"'))
    yield "a length that is none", request(good, length="many")
    yield "a negative length", request(good, length="-5")
    yield "two lengths", request(good, "Content-Length: 3")
    yield "more than it says", request(good + b"X" * 5000, length=str(len(good)))
    yield "a huge length", request(good, length="9" * 30)
    yield "a huge header", request(good, "X-Long: " + "a" * 200_000)
    yield "no HTTP", b"\x16\x03\x01" + bytes(range(256)) * 8
