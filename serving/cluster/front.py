"""The front: one address for all replicas, as an ASGI app.

Contract: a request goes to one replica and its answer comes back as it is, with `X-Replica`. When
that replica is lost before the answer has begun, the request goes to another one; when it had begun
(a stream), the client is told so in the stream. Either way the lost work has its receipt, outcome
`lost`. A client that goes away takes its request along. Adapters are loaded and unloaded one
replica after the other, so that the rest serve meanwhile; where one refuses, those that had done it
undo it. Fine-tuning jobs and files need one server and are refused by name.

Not covered: keys are checked by the replicas, but for `/metrics`; where no replica is there,
nothing is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from greenllm import __version__
from serving.app import PLAIN, answer_errors, guard
from serving.auth import identified, require_scope, token_of
from serving.bodies import Bodies
from serving.cluster.merged_metrics import merged
from serving.cluster.pool import Pool, ReplicaLostError
from serving.cluster.wire import BodyPart, Call, Head, Ticket, kin_of
from serving.config import HttpOptions
from serving.errors import ApiError
from serving.http import CLIENT_CLOSED_REQUEST, disconnected
from serving.keys.ring import KeyRing
from serving.keys.rules import rule_of
from serving.request_log import Log

logger = logging.getLogger(__name__)
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"]
LOAD_PATH, UNLOAD_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SINGLE_SERVER_PATHS = ("/v1/files", "/v1/fine_tuning")
# Once more, not often: a request may be what kills them.
MOST_TRIES = 2
ADAPTER_TIMEOUT_S = 120.0
# Whoever has died is known to Ray after a moment, a whole node only after some more.
REAP_AFTER_S = (0.5, 2.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """How much the front takes, and under which names replicas serve the base model."""

    max_in_flight: int = 256
    base: frozenset[str] = frozenset()


class Front:
    """Sends calls to a pool, again where a replica is lost."""

    def __init__(self, pool: Pool, options: HttpOptions, limits: FrontLimits) -> None:
        self.draining = False
        self._pool = pool
        self._limits = limits
        self._bodies = Bodies(largest_mb=options.max_body_mb, together_mb=options.max_buffered_mb)
        self._ending = asyncio.Event()
        self._in_flight = 0
        self._reaping: set[asyncio.Task[None]] = set()
        self._adapters = asyncio.Lock()

    async def answer(self, http: HttpRequest) -> Response:
        """Any request but the front's own."""
        path = http.url.path
        if any(path == one or path.startswith(f"{one}/") for one in SINGLE_SERVER_PATHS):
            raise ApiError(
                400,
                f"{path}: files and fine-tuning jobs are kept by one server; start one without"
                " --replicas, or run `greenllm finetune`",
                code="unsupported_with_replicas",
            )
        if self.draining:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
        if self._in_flight >= self._limits.max_in_flight:
            raise ApiError(
                429,
                f"{self._in_flight} requests are in flight; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self._in_flight += 1
        try:
            return await self._answer(http, path)
        finally:
            self._in_flight -= 1

    async def _answer(self, http: HttpRequest, path: str) -> Response:
        async with self._bodies.read(http) as body:
            call = self._call(http, body)
            if path in (LOAD_PATH, UNLOAD_PATH):
                async with self._adapters:
                    return await self._on_every_replica(call)
            return await self._cancelled_with(http, call)

    def _call(self, http: HttpRequest, body: bytes) -> Call:
        return Call(
            http.method,
            http.url.path,
            http.url.query.encode(),
            tuple(http.headers.raw),
            body,
            http.client.host if http.client else None,
        )

    async def _cancelled_with(self, http: HttpRequest, call: Call) -> Response:
        """Wait for the answer to begin; when the client goes first, the replica hears of it."""
        answer = asyncio.create_task(self._begin(call))
        gone = asyncio.create_task(disconnected(http))
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((answer, gone, ending), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return await answer
            if gone.done():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            raise _cut_off()
        finally:
            gone.cancel()
            ending.cancel()
            answer.cancel()

    def end_all(self) -> None:
        """The time to finish is over: every request is answered with what that means."""
        self._ending.set()

    async def _begin(self, call: Call) -> Response:
        """The answer of the first replica that is not lost before it begins."""
        ticket = Ticket(await self._kin(call))
        for _ in range(MOST_TRIES):
            ticket.replica = None
            parts = self._pool.send(call, ticket)
            try:
                head, first = await _beginning(parts)
            except ReplicaLostError as error:
                self._on_loss(error)
                ticket.shunned = (*ticket.shunned, ticket.replica or "")
                continue
            except BaseException:
                await _close(parts)
                raise
            headers = [*head.headers, (b"x-replica", (ticket.replica or "").encode())]
            return _streamed(head.status, headers, self._body(first, parts))
        raise ApiError(
            503,
            f"{MOST_TRIES} replicas were lost while they worked on this request; try again",
            code="replica_lost",
            headers={"Retry-After": "5"},
        )

    async def _kin(self, call: Call) -> tuple[str, ...]:
        return await self._bodies.work(len(call.body), partial(kin_of, call, self._limits.base))

    async def _body(
        self, first: BodyPart, parts: AsyncIterator[Head | BodyPart]
    ) -> AsyncIterator[bytes]:
        """The body, and in its place what became of it where the replica was lost."""
        is_whole = not first.more
        try:
            yield first.body
            async for part in parts:
                if isinstance(part, BodyPart):
                    is_whole = not part.more
                    yield part.body
                if self._ending.is_set() and not is_whole:
                    yield _event(_cut_off())
                    return
        except ReplicaLostError as error:
            self._on_loss(error)
            if is_whole:
                return
            lost = ApiError(503, "the replica was lost in mid-answer", code="replica_lost")
            yield _event(lost)
        finally:
            await _close(parts)

    def _on_loss(self, error: ReplicaLostError) -> None:
        logger.warning("replica %s was lost", error)
        task = asyncio.create_task(self._reap())
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def _reap(self) -> None:
        """Have the books of the dead closed, as soon as they are known to be dead."""
        waited_s = 0.0
        for after_s in REAP_AFTER_S:
            await asyncio.sleep(after_s - waited_s)
            waited_s = after_s
            try:
                lost = await self._pool.reap()
            except Exception:  # whoever keeps the ledger is being started again
                logger.warning("the books of the lost cannot be closed yet", exc_info=True)
                continue
            if lost:
                logger.warning("work on %d requests was lost: %s", len(lost), ", ".join(lost))
                return

    async def _on_every_replica(self, call: Call) -> Response:
        """Load or unload an adapter, replica by replica; the first one looks at key and body."""
        names = sorted(found["replica"] for found in await self._pool.describe())
        change = self._load if call.path == LOAD_PATH else self._unload
        return await change(call, names)

    async def _load(self, call: Call, names: list[str]) -> Response:
        """On all that are there, or on none."""
        done: dict[str, Response] = {}
        for name in names:
            response = await self._whole(call, name)
            if response.status_code == 200:
                done[name] = response
            elif response.status_code != 503:
                for loaded in done:
                    await self._whole(_unloading(call), loaded)
                return response
        if not done:
            raise _nobody()
        body = json.loads(call.body)
        await self._pool.set_adapter(body["lora_name"], body["lora_path"])
        answer = done[max(done)]
        answer.headers["x-replica"] = ", ".join(done)
        return answer

    async def _unload(self, call: Call, names: list[str]) -> Response:
        """On all that have it; again once it is forgotten, should one have learnt it meanwhile."""
        answers = {name: await self._whole(call, name) for name in names}
        there = {name: one for name, one in answers.items() if one.status_code != 503}
        if not there:
            raise _nobody()
        best = min(there.values(), key=lambda response: response.status_code)
        if best.status_code == 200:
            await self._pool.set_adapter(json.loads(call.body)["lora_name"], None)
            for name in there:
                await self._whole(call, name)
            best.headers["x-replica"] = ", ".join(there)
        return best

    async def _whole(self, call: Call, replica: str) -> Response:
        """One replica's answer; 503 where it is lost, or takes too long."""
        parts = self._pool.send(call, Ticket(target=replica))
        try:
            head, first = await asyncio.wait_for(_beginning(parts), ADAPTER_TIMEOUT_S)
        except ReplicaLostError as error:
            self._on_loss(error)
            return Response(status_code=503)
        except TimeoutError:
            return Response(status_code=503)
        finally:
            await _close(parts)
        response = Response(first.body, head.status)
        response.raw_headers = list(head.headers)
        return response

    async def ready(self) -> Response:
        """Whether some replica takes requests."""
        found = [] if self.draining else await self._pool.describe()
        body = {"ready": bool(found), "replicas": sorted(one["replica"] for one in found)}
        return JSONResponse(body, status_code=200 if found else 503)

    def health(self) -> Response:
        """Whether the front turns; it does also while it drains, and while replicas come back."""
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """Prometheus, each replica's under its name."""
        return Response(merged(await self._pool.metrics()), media_type=CONTENT_TYPE_LATEST)


def _event(error: ApiError) -> bytes:
    return f"data: {json.dumps(error.body())}\n\n".encode()


def _cut_off() -> ApiError:
    return ApiError(503, "the server shut down before the answer was complete")


def _nobody() -> ApiError:
    return ApiError(503, "no replica is there now", headers={"Retry-After": "5"})


def _unloading(call: Call) -> Call:
    """What undoes the loading of an adapter."""
    body = json.dumps({"lora_name": json.loads(call.body)["lora_name"]}).encode()
    headers = tuple(pair for pair in call.headers if pair[0] != b"content-length")
    size = (b"content-length", str(len(body)).encode())
    return Call("POST", UNLOAD_PATH, b"", (*headers, size), body, call.client)


async def _beginning(parts: AsyncIterator[Head | BodyPart]) -> tuple[Head, BodyPart]:
    """Status, headers and the first piece of the body, which shows that work has begun."""
    head = await anext(parts, None)
    first = await anext(parts, None)
    if not isinstance(head, Head) or not isinstance(first, BodyPart):
        raise ApiError(500, "the replica's answer has no beginning; see its log")
    return head, first


async def _close(parts: AsyncIterator[Head | BodyPart]) -> None:
    with suppress(RuntimeError):  # it is running, and ends by itself
        closing = getattr(parts, "aclose", None)
        if closing is not None:
            await closing()


def _streamed(
    status: int, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes]
) -> StreamingResponse:
    response = StreamingResponse(body, status_code=status)
    response.raw_headers = headers
    return response


def create_front(
    make_pool: Callable[[], Pool],
    options: HttpOptions,
    limits: FrontLimits,
    keys: KeyRing | None = None,
    log: Log | None = None,
) -> FastAPI:
    """Build the app; the pool is made at start, on the running event loop."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.front = Front(make_pool(), options, limits)
        yield

    app = FastAPI(title="greenllm", version=__version__, lifespan=lifespan, **PLAIN)

    async def ready(http: HttpRequest) -> Response:
        return await _front(http).ready()

    async def health(http: HttpRequest) -> Response:
        return _front(http).health()

    async def metrics(http: HttpRequest) -> Response:
        if keys is not None:
            require_scope(identified(keys, token_of(http)), rule_of("GET", "/metrics"))
        return await _front(http).metrics()

    async def answer(http: HttpRequest) -> Response:
        return await _front(http).answer(http)

    app.add_api_route("/ready", ready, methods=["GET"])
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.add_api_route("/{path:path}", answer, methods=METHODS)
    answer_errors(app)
    guard(app, options, log)
    return app


def _front(http: HttpRequest) -> Front:
    front: Front = http.app.state.front
    return front


def drain(app: FastAPI) -> None:
    """Take no more requests."""
    with suppress(AttributeError):  # it has not started yet
        app.state.front.draining = True


def end_all(app: FastAPI) -> None:
    """Answer what is still running."""
    app.state.front.end_all()
