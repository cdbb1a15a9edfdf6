"""An app without a socket: its answer in parts, and what it hears when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serving.cluster.asgi import App, answer_of, scope_of
from serving.cluster.wire import BodyPart, Call, Head

PATIENCE_S = 10.0
CALL = Call("POST", "/a b", b"x=1", ((b"h", b"v"),), b"body", "10.0.0.1")


def parts_of(app: App, call: Call = CALL) -> list[Head | BodyPart]:
    async def run() -> list[Head | BodyPart]:
        return [part async for part in answer_of(app, call)]

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body, in two parts."""
    message = await receive()
    headers = [(b"more", str(message["more_body"]).encode())]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


def test_an_answer_is_a_head_and_parts_the_last_without_more() -> None:
    assert parts_of(echo) == [
        Head(201, ((b"more", b"False"),)),
        BodyPart(b"body", True),
        BodyPart(b"!", False),
    ]


def test_an_app_sees_the_call() -> None:
    seen: list[Any] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    parts_of(look)
    (scope,) = seen
    assert scope == scope_of(CALL)
    told = [scope[name] for name in ("type", "method", "path", "query_string", "headers", "client")]
    assert told == ["http", "POST", "/a b", b"x=1", [(b"h", b"v")], ("10.0.0.1", 0)]
    assert scope_of(Call("GET", "/", b"", (), b""))["client"] is None


def test_parts_come_while_the_app_still_works() -> None:
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"2", "more_body": False})

    async def run() -> list[Head | BodyPart]:
        answer = answer_of(slow, CALL)
        found = [await anext(answer), await anext(answer)]
        go.set()
        return [*found, *[part async for part in answer]]

    found = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert found == [Head(200, ()), BodyPart(b"1", True), BodyPart(b"2", False)]


@pytest.mark.parametrize("error", [ValueError("broken"), OSError("disk")])
@pytest.mark.parametrize("begun", [False, True])
def test_an_app_that_fails_is_told_of(error: Exception, begun: bool) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200})
        raise error

    found: list[Head | BodyPart] = []

    async def run() -> None:
        found.extend([part async for part in answer_of(fail, CALL)])

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(run())
    assert found == []


async def leave_after(app: App, num_parts: int) -> None:
    """Go away once so many parts have come."""
    answer = answer_of(app, CALL)
    for _ in range(num_parts):
        await anext(answer)
    assert isinstance(answer, AsyncIterator)
    await answer.aclose()  # type: ignore[attr-defined]


def test_a_client_that_goes_is_heard_of_and_the_app_is_waited_for() -> None:
    heard: list[str] = []

    async def listen(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])
        await asyncio.sleep(0.05)
        heard.append("end")

    asyncio.run(asyncio.wait_for(leave_after(listen, 1), PATIENCE_S))
    assert heard == ["http.request", "http.disconnect", "end"]


def test_an_app_that_goes_on_sending_is_stopped() -> None:
    told: list[str] = []

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            told.append(str(error))
            raise

    asyncio.run(asyncio.wait_for(leave_after(flood, 2), PATIENCE_S))
    assert told == ["the client has gone"]


def streaming(ends: list[str], *, silent: bool) -> FastAPI:
    """As the server streams: the generator's end is the request's."""
    app = FastAPI()

    async def words() -> AsyncIterator[str]:
        try:
            yield "first"
            while True:
                await asyncio.sleep(1e6 if silent else 0.001)
                yield "more"
        finally:
            ends.append("ended")

    @app.post("/a b")
    async def answer(http: Request) -> StreamingResponse:
        assert await http.body() == b"body"
        return StreamingResponse(words())

    return app


@pytest.mark.parametrize("silent", [False, True])
def test_a_stream_ends_when_its_client_goes(silent: bool) -> None:
    ends: list[str] = []
    asyncio.run(asyncio.wait_for(leave_after(streaming(ends, silent=silent), 2), PATIENCE_S))
    assert ends == ["ended"]
