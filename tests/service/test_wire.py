"""A real server with a real model keeps to the golden files of the app's tests, and to HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.api.shapes import CHAT, assert_golden, texts_of
from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.service.conftest import Server


def test_the_format_is_that_of_the_golden_files(server: Server) -> None:
    for name, text in texts_of(server).items():
        assert_golden(name, text)


@pytest.mark.parametrize("announced", [True, False])
def test_a_hundred_megabytes_are_refused(server: Server, announced: bool) -> None:
    block = b" " * 1_000_000

    def blocks() -> Iterator[bytes]:
        for _ in range(100):
            yield block

    given = {"Content-Type": "application/json"}
    if announced:
        given["Content-Length"] = str(100 * len(block))
    answer = server.http.post(CHAT, content=blocks(), headers=given)
    assert answer.status_code == 413
    assert answer.headers["Connection"] == "close"
    assert server.row(answer.headers["X-Request-Id"]).http_status == 413


def test_a_client_that_only_writes_sees_why_it_is_refused(server: Server) -> None:
    """It reads when it has written all: a connection that was reset would have no answer."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head + 9 * chunk + b"0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body exceeds 8 MB" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x00\xff\x00\xff" * 100,
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}",
    ],
    ids=["garbage", "binary", "half a body", "bad chunk", "negative length"],
)
def test_broken_connections_do_no_harm(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
    assert server.http.get("/health").status_code == 200
    server.wait_idle()
    assert server.metric("kv_blocks_free") > 0
