"""The front on made-up replicas: answers pass through, losses are made good, or told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST

from serving.cluster import front
from serving.cluster.asgi import answer_of
from serving.cluster.front import FrontLimits, create_front, drain, end_all
from serving.cluster.pool import ReplicaLostError
from serving.cluster.wire import BodyPart, Call, Head, Ticket
from serving.config import HttpOptions
from serving.keys.caller import Scope
from serving.keys.ring import KeyRing
from serving.keys.store import Key, change_keys, hash_of

PATIENCE_S = 10.0
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADAPTER = {"lora_name": "a", "lora_path": "/a"}
Piece = Head | BodyPart | Exception
Behaviour = Callable[[Call], AsyncIterator[Head | BodyPart]]


def says(*pieces: Piece) -> Behaviour:
    """A replica that answers so, up to an exception."""

    async def answer(call: Call) -> AsyncIterator[Head | BodyPart]:
        for piece in pieces:
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return answer


def plain(status: int = 200, body: bytes = b"{}") -> Behaviour:
    headers = ((b"content-type", b"application/json"), (b"x-mine", b"1"))
    return says(Head(status, headers), BodyPart(body, False))


LOST = ReplicaLostError("r")
OK = plain()


@dataclass
class FakePool:
    """Replicas by name; those without a target go to the first that is not shunned."""

    replicas: dict[str, Behaviour]
    lost: list[str] = field(default_factory=list)
    calls: list[tuple[str, Call]] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    held: list[AsyncIterator[Head | BodyPart]] = field(default_factory=list)
    adapters: list[tuple[str, str | None]] = field(default_factory=list)
    reaped: asyncio.Event = field(default_factory=asyncio.Event)
    num_reaps: int = 0
    is_over: bool = False
    told_after: int = 1

    def send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | BodyPart]:
        parts = self._send(call, ticket)
        self.held.append(parts)  # else the garbage collector would close what the front forgets
        return parts

    async def _send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | BodyPart]:
        names = [name for name in self.replicas if name not in ticket.shunned]
        ticket.replica = ticket.target or (names or list(self.replicas))[0]
        self.calls.append((ticket.replica, call))
        self.tickets.append(ticket)
        try:
            async for part in self.replicas[ticket.replica](call):
                yield part
        finally:
            if not self.is_over:
                self.closed.append(ticket.replica)

    async def describe(self) -> list[dict[str, Any]]:
        return [{"replica": name} for name in reversed(self.replicas)]

    async def metrics(self) -> list[tuple[str, bytes]]:
        text = b"# HELP g A gauge.\n# TYPE g gauge\ng 1.0\n"
        return [(name, text) for name in self.replicas]

    async def set_adapter(self, name: str, folder: str | None) -> None:
        self.adapters.append((name, folder))

    async def reap(self) -> list[str]:
        self.num_reaps += 1
        if self.num_reaps < self.told_after:
            return []
        self.reaped.set()
        return self.lost

    def asked(self) -> list[tuple[str, str, Any]]:
        """Who was asked what."""
        return [(name, call.path, json.loads(call.body or b"null")) for name, call in self.calls]


@asynccontextmanager
async def opened(pool: FakePool) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_front(lambda: pool, HttpOptions(max_body_mb=1.0), FrontLimits())
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
        transport=transport, base_url="http://localhost"
    ) as client:  # fmt: skip
        yield app, client


def during(pool: FakePool, act: Callable[[FastAPI, httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with opened(pool) as (app, client):
            try:
                return await act(app, client)
            finally:
                pool.is_over = True  # what the event loop closes at its end, nobody did

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def ask(pool: FakePool, method: str, path: str, **options: Any) -> httpx.Response:
    """One request to a front of its own."""
    found = during(pool, lambda app, client: client.request(method, path, **options))
    assert isinstance(found, httpx.Response)
    return found


def complete(pool: FakePool, **body: Any) -> httpx.Response:
    return ask(pool, "POST", "/v1/completions", json={"prompt": "Hi", **body})


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "REAP_AFTER_S", (0.0, 0.001, 0.002))


def test_an_answer_passes_through_as_it_is_with_the_replicas_name() -> None:
    pool = FakePool({"r1": plain(418, b'{"x": 1}')})
    found = complete(pool)
    assert (found.status_code, found.json()) == (418, {"x": 1})
    assert (found.headers["x-mine"], found.headers["x-replica"]) == ("1", "r1")
    assert pool.closed == ["r1"]


def test_a_request_passes_through_as_it_is() -> None:
    pool = FakePool({"r1": OK})
    ask(pool, "DELETE", "/v1/x%20y?a=1&b=%20", headers={"Authorization": "Bearer k"}, content=b"z")
    ((_, call),) = pool.calls
    assert (call.method, call.path, call.query, call.body) == (
        "DELETE", "/v1/x y", b"a=1&b=%20", b"z",
    )  # fmt: skip
    assert call.fields["authorization"] == "Bearer k"
    assert call.client == "127.0.0.1"


def test_the_router_is_told_the_kin() -> None:
    pool = FakePool({"r1": OK})
    complete(pool, user="u", model="fox")
    (ticket,) = pool.tickets
    assert [kin.partition(":")[0] for kin in ticket.kin] == ["session", "prefix", "adapter"]
    words = "word " * 30_000
    complete(pool, user="u", model="fox", messages=[{"role": "user", "content": words}])
    assert len(pool.tickets[-1].kin) == 3, "long bodies are read too"


def test_a_stream_passes_through_in_its_parts() -> None:
    parts = [BodyPart(b"data: 1\n\n", True), BodyPart(b"data: 2\n\n", True), BodyPart(b"", False)]
    found = complete(FakePool({"r1": says(Head(200, ()), *parts)}))
    assert found.text == "data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("pieces", [[LOST], [Head(200, ()), LOST]])
def test_work_that_is_lost_before_its_answer_goes_to_another_replica(pieces: list[Piece]) -> None:
    pool = FakePool({"r1": says(*pieces), "r2": OK})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> httpx.Response:
        found = await client.post("/v1/completions", json={})
        await pool.reaped.wait()
        return found

    found = during(pool, act)
    assert (found.status_code, found.headers["x-replica"]) == (200, "r2")
    assert [name for name, _ in pool.calls] == ["r1", "r2"]
    assert pool.tickets[0].shunned == ("r1",)


def test_after_two_losses_the_client_is_told() -> None:
    pool = FakePool({name: says(LOST) for name in ("r1", "r2", "r3", "r4")})
    found = complete(pool)
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert found.json()["error"]["code"] == "replica_lost"
    assert found.headers["x-request-id"].startswith("req")
    assert [name for name, _ in pool.calls] == ["r1", "r2"]


def test_a_stream_whose_replica_is_lost_says_so_and_does_not_end_as_if_done() -> None:
    pool = FakePool({"r1": says(Head(200, ()), BodyPart(b"data: 1\n\n", True), LOST), "r2": OK})
    found = complete(pool)
    first, second, rest = found.text.split("\n\n")
    assert (found.status_code, first, rest) == (200, "data: 1", "")
    error = json.loads(second.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("replica_lost", "server_error")
    assert "[DONE]" not in found.text
    assert len(pool.calls) == 1, "half an answer is not begun anew"


def test_an_answer_that_was_whole_is_not_spoilt_by_a_loss_after_it() -> None:
    pool = FakePool({"r1": says(Head(200, ()), BodyPart(b'{"x": 1}', False), LOST)})
    assert complete(pool).json() == {"x": 1}


def test_the_dead_are_looked_for_after_a_loss_until_somebody_is_found() -> None:
    pool = FakePool({"r1": says(LOST), "r2": OK}, lost=["cmpl-1"], told_after=2)

    async def act(app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.post("/v1/completions", json={})
        await pool.reaped.wait()
        await asyncio.sleep(0.02)

    during(pool, act)
    assert pool.num_reaps == 2


def test_nobody_looks_for_the_dead_without_a_loss() -> None:
    pool = FakePool({"r1": OK})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> None:
        await client.post("/v1/completions", json={})
        await asyncio.sleep(0.02)

    during(pool, act)
    assert pool.num_reaps == 0


@pytest.mark.parametrize(
    "pieces", [[], [Head(200, ())], [BodyPart(b"", False), BodyPart(b"", False)]]
)
def test_an_answer_without_a_beginning_is_a_bug_of_the_replica(pieces: list[Piece]) -> None:
    pool = FakePool({"r1": says(*pieces), "r2": OK})
    found = complete(pool)
    assert found.status_code == 500
    assert "no beginning" in found.json()["error"]["message"]
    assert pool.closed == ["r1"]


def test_a_failure_of_a_replica_that_is_still_there_is_not_tried_again() -> None:
    pool = FakePool({"r1": says(ValueError("a bug")), "r2": OK})
    with pytest.raises(ValueError, match="a bug"):
        complete(pool)
    assert len(pool.calls) == 1


def waiting(reached: asyncio.Event, *pieces: Head | BodyPart) -> Behaviour:
    """A replica that says something and then nothing more."""

    async def answer(call: Call) -> AsyncIterator[Head | BodyPart]:
        for piece in pieces:
            yield piece
        reached.set()
        await asyncio.sleep(1e6)

    return answer


@pytest.mark.parametrize("pieces", [(), (Head(200, ()), BodyPart(b"data: 1\n\n", True))])
def test_a_client_that_goes_takes_its_request_along(pieces: Sequence[Head | BodyPart]) -> None:
    reached = asyncio.Event()
    pool = FakePool({"r1": waiting(reached, *pieces)})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> None:
        answer = answer_of(app, Call("POST", "/v1/completions", b"", (), b"{}"))

        async def read() -> None:
            async for _ in answer:
                pass

        reading = asyncio.create_task(read())
        await reached.wait()
        assert pool.closed == []
        reading.cancel()
        await asyncio.wait([reading])
        await asyncio.sleep(0.01)
        assert pool.closed == ["r1"]

    during(pool, act)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/f-1", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_files_and_jobs_are_refused_by_name(path: str, method: str) -> None:
    pool = FakePool({"r1": OK})
    found = ask(pool, method, path)
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "unsupported_with_replicas"
    assert path in found.json()["error"]["message"]
    assert pool.calls == []


def test_a_body_that_is_too_large_reaches_no_replica() -> None:
    pool = FakePool({"r1": OK})
    assert ask(pool, "POST", "/v1/completions", content=b"x" * 1_000_001).status_code == 413
    assert pool.calls == []


def test_a_draining_front_takes_nothing_more() -> None:
    pool = FakePool({"r1": OK})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> list[httpx.Response]:
        drain(app)
        return [await client.get(path) for path in ("/v1/models", "/ready", "/health")]

    found = during(pool, act)
    assert [one.status_code for one in found] == [503, 503, 200], "it drains, and is healthy"
    assert found[0].headers["retry-after"] == "5"
    assert found[1].json() == {"ready": False, "replicas": []}
    assert pool.calls == []


def test_when_the_time_is_over_everybody_gets_an_answer() -> None:
    begun, forever = asyncio.Event(), asyncio.Event()

    async def never(call: Call) -> AsyncIterator[Head | BodyPart]:
        begun.set()
        await forever.wait()
        yield Head(200, ())

    pool = FakePool({"r1": never})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> httpx.Response:
        asking = asyncio.create_task(client.post("/v1/completions", json={}))
        await begun.wait()
        drain(app)
        end_all(app)
        return await asyncio.wait_for(asking, 5.0)

    found = during(pool, act)
    assert found.status_code == 503
    assert "shut down" in found.json()["error"]["message"]
    assert pool.closed == ["r1"]


def test_a_stream_ends_with_an_error_when_the_time_is_over() -> None:
    apps: list[FastAPI] = []

    async def endless(call: Call) -> AsyncIterator[Head | BodyPart]:
        yield Head(200, ())
        for number in range(1000):
            if number == 3:
                end_all(apps[0])
            yield BodyPart(f"data: {number}\n\n".encode(), True)

    pool = FakePool({"r1": endless})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> httpx.Response:
        apps.append(app)
        return await client.post("/v1/completions", json={})

    events = during(pool, act).text.strip().split("\n\n")
    assert events[:4] == ["data: 0", "data: 1", "data: 2", "data: 3"]
    assert len(events) == 5
    assert "shut down" in events[4]


def test_more_than_the_front_takes_at_once_is_told_to_come_back() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> AsyncIterator[Head | BodyPart]:
        begun.set()
        await go.wait()
        yield Head(200, ())
        yield BodyPart(b"ok", False)

    async def act() -> list[httpx.Response]:
        app = create_front(
            lambda: FakePool({"r1": slow}), HttpOptions(), FrontLimits(max_in_flight=1)
        )
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            first = asyncio.create_task(client.get("/v1/models"))
            await begun.wait()
            second = await client.get("/v1/models")
            go.set()
            return [second, await first, await client.get("/v1/models")]

    refused, *answered = asyncio.run(act())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert [one.status_code for one in answered] == [200, 200]


def test_only_whole_parts_of_a_path_are_refused() -> None:
    pool = FakePool({"r1": OK})
    assert ask(pool, "GET", "/v1/filesystem").status_code == 200


def test_an_app_that_has_not_started_can_be_told_to_drain() -> None:
    app = create_front(lambda: FakePool({}), HttpOptions(), FrontLimits())
    drain(app)
    assert not hasattr(app.state, "front")


def test_the_front_is_ready_with_its_first_replica() -> None:
    found = ask(FakePool({"r2": OK, "r1": OK}), "GET", "/ready")
    assert (found.status_code, found.json()) == (200, {"ready": True, "replicas": ["r1", "r2"]})


def test_a_front_without_replicas_is_not_ready_and_yet_healthy() -> None:
    assert ask(FakePool({}), "GET", "/ready").status_code == 503
    assert ask(FakePool({}), "GET", "/health").status_code == 200


def test_metrics_are_for_keys_with_the_scope(tmp_path: Path) -> None:
    """The front answers these itself; for the rest the replicas look at keys."""
    path = tmp_path / "keys.json"
    scopes: dict[str, frozenset[Scope]] = {
        "a": frozenset({"metrics"}),
        "b": frozenset({"inference"}),
    }
    keys = [Key(name=name, sha256=hash_of(name.encode()), scopes=scopes[name]) for name in scopes]
    change_keys(path, lambda _: keys)
    ring = KeyRing((), path, lambda: 0.0, lambda: 0.0)
    app = create_front(lambda: FakePool({"r1": OK}), HttpOptions(), FrontLimits(), ring)

    async def status(*headers: tuple[bytes, bytes]) -> int:
        call = Call("GET", "/metrics", b"", headers, b"")
        async with app.router.lifespan_context(app):
            head = await anext(answer_of(app, call))
        assert isinstance(head, Head)
        return head.status

    for token, expected in ((b"a", 200), (b"b", 403), (b"c", 401)):
        assert asyncio.run(status((b"authorization", b"Bearer " + token))) == expected
    assert asyncio.run(status()) == 401


def test_metrics_are_those_of_all_replicas() -> None:
    found = ask(FakePool({"r1": OK, "r2": OK}), "GET", "/metrics")
    assert found.headers["content-type"] == CONTENT_TYPE_LATEST
    assert 'g{replica="r1"} 1.0\ng{replica="r2"} 1.0\n' in found.text


def test_an_adapter_is_loaded_by_one_replica_after_the_other() -> None:
    running: list[str] = []

    def slow(name: str) -> Behaviour:
        async def answer(call: Call) -> AsyncIterator[Head | BodyPart]:
            running.append(f"+{name}")
            await asyncio.sleep(0.002)
            running.append(f"-{name}")
            yield Head(200, ())
            yield BodyPart(b"ok", False)

        return answer

    pool = FakePool({name: slow(name) for name in ("r1", "r2")})

    async def act(app: FastAPI, client: httpx.AsyncClient) -> list[httpx.Response]:
        load, unload = client.post(LOAD, json=ADAPTER), client.post(UNLOAD, json=ADAPTER)
        return list(await asyncio.gather(load, unload))

    found = during(pool, act)
    assert [one.status_code for one in found] == [200, 200]
    assert {one.headers["x-replica"] for one in found} == {"r1, r2"}
    # What is unloaded is unloaded again once no replica can learn it any more.
    assert running == ["+r1", "-r1", "+r2", "-r2"] * 3
    assert pool.closed == ["r1", "r2"] * 3
    assert pool.adapters == [("a", "/a"), ("a", None)]


def test_where_a_later_replica_refuses_the_earlier_ones_undo_it() -> None:
    pool = FakePool({"r1": OK, "r2": OK, "r3": plain(400, b'{"error": 1}'), "r4": OK})
    key = {"Authorization": "Bearer k"}
    found = ask(pool, "POST", LOAD, json=ADAPTER, headers=key)
    assert (found.status_code, found.json()) == (400, {"error": 1})
    undo = {"lora_name": "a"}
    assert pool.asked() == [
        *((name, LOAD, ADAPTER) for name in ("r1", "r2", "r3")),
        *((name, UNLOAD, undo) for name in ("r1", "r2")),
    ]
    last = pool.calls[-1][1]
    assert last.fields["authorization"] == "Bearer k"
    assert last.fields["content-length"] == str(len(last.body))
    assert pool.adapters == []


def test_an_adapter_that_only_some_replicas_have_is_unloaded() -> None:
    pool = FakePool({"r1": plain(404), "r2": OK})
    assert ask(pool, "POST", UNLOAD, json={"lora_name": "a"}).status_code == 200
    assert pool.adapters == [("a", None)]


def test_an_unloading_that_is_refused_is_not_remembered() -> None:
    pool = FakePool({"r1": plain(404), "r2": plain(404)})
    assert ask(pool, "POST", UNLOAD, json={"lora_name": "a"}).status_code == 404
    assert len(pool.calls) == 2
    assert pool.adapters == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"lora_name": "a"}'])
@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_what_is_wrong_with_an_adapter_is_what_the_replica_says(path: str, body: bytes) -> None:
    pool = FakePool({"r1": plain(400, b'{"error": "wrong"}')})
    found = ask(pool, "POST", path, content=body)
    assert (found.status_code, found.json()) == (400, {"error": "wrong"})
    assert pool.adapters == []


@pytest.mark.parametrize("lost", ["r1", "r2"])
def test_a_replica_that_is_lost_meanwhile_does_not_stop_a_loading(lost: str) -> None:
    pool = FakePool({name: says(LOST) if name == lost else OK for name in ("r1", "r2")})
    found = ask(pool, "POST", LOAD, json=ADAPTER)
    (done,) = {"r1", "r2"} - {lost}
    assert (found.status_code, found.headers["x-replica"]) == (200, done)
    assert pool.adapters == [("a", "/a")]


def test_an_adapter_that_no_replica_has_taken_is_not_remembered() -> None:
    pool = FakePool({"r1": says(LOST), "r2": plain(503)})
    assert ask(pool, "POST", LOAD, json=ADAPTER).status_code == 503
    assert pool.adapters == []


def test_without_replicas_no_adapter_is_loaded() -> None:
    pool = FakePool({})
    found = ask(pool, "POST", LOAD, json=ADAPTER)
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert pool.adapters == []
