"""A wrong body costs little, and all bodies together stay within their room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from serving.bodies import DISCARDED_LIMITS, LONG_AT_A_TIME, Bodies
from serving.errors import ApiError, from_validation
from serving.http import validated
from serving.limits import LONG_BODY_BYTES, MOST_VALUES
from serving.openai.job_schemas import JobBody
from serving.openai.schemas import ChatBody, CompletionBody, DetokenizeBody

MB = 1_000_000
MANY = 20_000
WORDS = b",".join(b'"%d":[]' % i for i in range(MANY))


def filled(item: bytes) -> bytes:
    return b",".join([item] * MANY)


# Bodies that are wrong in very many places.
WRONG: list[tuple[type[BaseModel], bytes]] = [
    (CompletionBody, b'{"prompt":[' + filled(b"1") + b",[]]}"),
    (CompletionBody, b'{"prompt":[' + filled(b"[]") + b",1]}"),
    (CompletionBody, b'{"prompt":[' + filled(b'["a"]') + b"]}"),
    (CompletionBody, b'{"prompt":"a","stop_token_ids":[' + filled(b'""') + b"]}"),
    (CompletionBody, b'{"prompt":"a","stop":[' + filled(b"0") + b"]}"),
    (CompletionBody, b'{"prompt":"a","logit_bias":{' + WORDS + b"}}"),
    (CompletionBody, b'{"prompt":"a","metadata":{' + WORDS + b"}}"),
    (CompletionBody, b'{"prompt":"a",' + WORDS + b"}"),
    (ChatBody, b'{"messages":[' + filled(b"0") + b"]}"),
    (ChatBody, b'{"messages":[{"role":"user","content":[' + filled(b"0") + b"]}]}"),
    (ChatBody, b'{"messages":[{' + WORDS + b"}]}"),
    (ChatBody, b'{"tools":[' + filled(b"0") + b"]}"),
    (DetokenizeBody, b'{"tokens":[' + filled(b'""') + b"]}"),
    (JobBody, b'{"recipe":{' + WORDS + b"}}"),
    (JobBody, b'{"recipe":{"target_modules":[' + filled(b"0") + b"]}}"),
]


@pytest.mark.parametrize(("kind", "raw"), WRONG)
def test_errors_are_few_however_much_is_wrong(kind: type[BaseModel], raw: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(raw)
    assert caught.value.error_count() < 10
    assert len(str(from_validation(caught.value))) < 500


def test_names_that_a_client_made_up_are_shown_in_part() -> None:
    with pytest.raises(ApiError) as caught:
        validated(DetokenizeBody, b'{"tokens":[],"' + b"x" * MB + b'":1}')
    assert caught.value.code == "unknown_parameter"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("mark", [b"[],", b"{},", b"0,", b"[" * 3])
def test_what_would_become_too_many_objects_is_not_parsed(mark: bytes) -> None:
    with pytest.raises(ApiError, match=str(MOST_VALUES)) as caught:
        validated(DetokenizeBody, b'{"tokens":[' + mark * MOST_VALUES)
    assert caught.value.status == 400


class Sent:
    """A request whose body comes in parts; `taken` of them have been read."""

    def __init__(self, parts: Sequence[int], **headers: str) -> None:
        self.taken = 0
        self._parts = list(parts)
        named = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": named}
        self.http = HttpRequest(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.taken += 1
        part = b" " * self._parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}


def read(bodies: Bodies, sent: Sent) -> int | ApiError:
    async def run() -> int:
        async with bodies.read(sent.http) as raw:
            assert bodies.held_bytes >= len(raw)
            return len(raw)

    try:
        return asyncio.run(run())
    except ApiError as error:
        return error


def test_a_body_counts_while_it_is_worked_on() -> None:
    bodies = Bodies(largest_mb=1, together_mb=1.5)

    async def run() -> None:
        async with bodies.read(Sent([MB // 2, MB // 2]).http) as raw:
            assert (len(raw), bodies.held_bytes) == (MB, MB)
            with pytest.raises(ApiError) as caught:
                async with bodies.read(Sent([MB // 2, 1]).http):
                    pass
            async with bodies.read(Sent([MB // 2 - 1]).http) as rest, bodies.read(Sent([9]).http):
                assert len(rest) == MB // 2 - 1, "a short one always fits"
        assert (caught.value.status, caught.value.code) == (503, "bodies_full")
        assert caught.value.headers["Retry-After"]

    asyncio.run(run())
    assert bodies.held_bytes == 0
    assert read(bodies, Sent([MB])) == MB


@pytest.mark.parametrize(
    ("parts", "headers", "taken"),
    [
        ([MB, 1], {}, 2),
        ([MB] * 10, {}, DISCARDED_LIMITS + 1),
        ([MB] * 3, {"content_length": str(3 * MB)}, 3),
        ([MB] * 10, {"content_length": str(10 * MB)}, 0),
        ([MB] * 3, {"content_length": str(3 * MB), "expect": "100-continue"}, 0),
    ],
)
def test_what_is_too_large_is_thrown_away(
    parts: list[int], headers: dict[str, str], taken: int
) -> None:
    bodies, sent = Bodies(largest_mb=1, together_mb=1), Sent(parts, **headers)
    error = read(bodies, sent)
    assert isinstance(error, ApiError)
    assert (error.status, error.headers) == (413, {"Connection": "close"})
    assert (sent.taken, bodies.held_bytes) == (taken, 0)


def test_long_work_is_done_beside_the_event_loop_a_little_at_a_time() -> None:
    bodies, running = Bodies(largest_mb=1, together_mb=1), threading.Semaphore(LONG_AT_A_TIME)

    def work() -> bool:
        assert running.acquire(blocking=False), "too much at a time"
        threading.Event().wait(0.01)
        running.release()
        return threading.current_thread() is threading.main_thread()

    async def run(size: int) -> list[bool]:
        return await asyncio.gather(*(bodies.work(size, work) for _ in range(6)))

    assert asyncio.run(run(LONG_BODY_BYTES)) == [True] * 6
    assert asyncio.run(run(LONG_BODY_BYTES + 1)) == [False] * 6
