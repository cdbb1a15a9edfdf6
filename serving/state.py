"""What the routes share: one object, made by the app factory, no globals."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, cast

from fastapi import Request as HttpRequest

from greenllm.core import AdapterRef, Request
from greenllm.energy.account.account import Totals
from greenllm.energy.ledger import Row
from greenllm.energy.receipt import Receipt
from greenllm.engine.drafting import Drafting
from greenllm.engine.loop import EngineLoop, Recorder
from greenllm.engine.protocol import Engine
from greenllm.model.adapters import UnknownAdapterError
from greenllm.model.info import ModelInfo
from greenllm.model.lora_config import AdapterError
from greenllm.runner.threads import ThreadPlan
from greenllm.speculation.calibrated_exit import CalibratedExit
from greenllm.tokenizer import Tokenizer
from serving.auth import fingerprint
from serving.bridge import Bridge, QueueFullError, Submission
from serving.config import ServeConfig
from serving.errors import ApiError
from serving.jobs.files import FileStore
from serving.jobs.runner import JobRunner
from serving.jobs.store import FINE_TUNED, TrainingHooks, adapter_folder
from serving.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a body may leave to the server: tokens guessed at a time, and where answers leave."""

    num_drafts: int
    exit: CalibratedExit | None = None


class Books(Recorder, Protocol):
    """A ledger, here or elsewhere; see `energy.ledger.Ledger`."""

    @property
    def path(self) -> Path | str:
        """Its file, for people."""

    def receipt(self, request_id: str) -> Receipt | None:
        """One request's receipt."""

    def sums(
        self,
        group_by: str | None = None,
        *,
        since_s: float = 0.0,
        until_s: float = 1e12,
        key: str | None = None,
    ) -> list[Row]:
        """Sums per group."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(slots=True)
class ServerState:
    """A running server."""

    config: ServeConfig
    engine: Engine
    tokenizer: Tokenizer
    ledger: Books
    loop: EngineLoop
    bridge: Bridge
    metrics: Metrics
    drafting: Drafting
    threads: ThreadPlan
    files: FileStore
    jobs: JobRunner
    hooks: TrainingHooks
    totals: Callable[[], Totals]
    draining: bool = False

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names under which clients may ask for the model; the first is the official one."""
        return model_names(self.config, self.engine.info)

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that end an answer without being part of it."""
        return self.engine.info.eos_token_ids

    @property
    def defaults(self) -> Defaults:
        """What request bodies may leave to the server."""
        return Defaults(self.config.speculative_tokens, self.drafting.exit)

    def model_and_adapter(self, name: str) -> tuple[str, str | None]:
        """Take `base`, `adapter` or `base:adapter` apart; the adapter may not exist."""
        if name in self.model_names:
            return name, None
        if name.startswith(FINE_TUNED):
            return self.model_names[0], adapter_folder(name)
        for base in self.model_names:
            if name.startswith(f"{base}:"):
                return base, name.removeprefix(f"{base}:")
        return self.model_names[0], name

    def key_of(self, http: HttpRequest) -> str | None:
        """Fingerprint of the caller's key.

        Raises:
            ApiError: keys are required and this is none of them.
        """
        scheme, _, key = http.headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" and key.strip() else None
        allowed = self.config.api_keys
        matches = [hmac.compare_digest(k.encode(), (given or "").encode()) for k in allowed]
        if allowed and not any(matches):
            raise ApiError(401, "a valid API key is required", code="invalid_api_key")
        return fingerprint(given)

    async def submit(self, request: Request, *, streaming: bool) -> Submission:
        """Check a request, get ready what it needs, and hand it to the engine."""
        self._check(request)
        asked = (request.speculation, request.approximation, request.sampling.json_schema)
        if any(one is not None for one in asked):
            await asyncio.to_thread(self.engine.prepare, request)
            self._check(request)
        model, adapter = self.model_and_adapter(request.model)
        if adapter is None:
            return self._submit(request, streaming=streaming)
        ref = await self._acquired(adapter, request.model)
        adapted = replace(request, model=model, adapter=ref, asked_model=request.model)
        try:
            self._check(adapted)
            return self._submit(adapted, streaming=streaming)
        except BaseException:
            self.engine.adapters.release(ref)
            raise

    async def _acquired(self, adapter: str, asked: str) -> AdapterRef:
        """An adapter in memory; given back at once when the caller has been cancelled meanwhile."""
        acquiring = asyncio.create_task(asyncio.to_thread(self._acquire, adapter, asked))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            acquiring.add_done_callback(self._give_back)
            raise

    def _give_back(self, acquiring: asyncio.Task[AdapterRef]) -> None:
        if not acquiring.cancelled() and acquiring.exception() is None:
            self.engine.adapters.release(acquiring.result())

    def _acquire(self, adapter: str, asked: str) -> AdapterRef:
        try:
            return self.engine.adapters.acquire(adapter)
        except UnknownAdapterError as error:
            raise self.no_such_model(asked) from error
        except AdapterError as error:
            raise ApiError(400, str(error), param="model", code="adapter_unusable") from error

    def no_such_model(self, name: str) -> ApiError:
        """The answer to who asks for what is not here: never a fall back to the base."""
        return ApiError(
            404,
            f"the model {name!r} is not served here; it is {self.model_names[0]!r}, and"
            " GET /v1/models lists its adapters",
            param="model",
            code="model_not_found",
        )

    def _check(self, request: Request) -> None:
        if self.draining or not self.loop.is_alive:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
        self.engine.check(request)
        self._with_room(self.bridge.check_room)

    def _submit(self, request: Request, *, streaming: bool) -> Submission:
        return self._with_room(lambda: self.bridge.submit(request, streaming=streaming))

    def _with_room(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except QueueFullError as error:
            raise ApiError(
                429,
                f"{self.config.max_queue} requests are in flight; try again later",
                code="queue_full",
                headers={"Retry-After": str(error.retry_after_s)},
            ) from error

    def record_refusal(self, receipt: Receipt) -> None:
        """Book a request that never reached the engine."""
        self.loop.record(receipt)
        self.metrics.observe(receipt)


def model_names(config: ServeConfig, info: ModelInfo) -> tuple[str, ...]:
    """Names of the base model; the first is the official one."""
    names = (config.served_model_name, info.name, config.model)
    return tuple(dict.fromkeys(name for name in names if name))


def state_of(http: HttpRequest) -> ServerState:
    """The server behind a request."""
    return cast(ServerState, http.app.state.server)


async def read_body(http: HttpRequest, limit_mb: float) -> bytes:
    """Read a request body up to a limit.

    Raises:
        ApiError: it is larger (413) or not UTF-8 (400).
    """
    limit = int(limit_mb * 1_000_000)
    size = http.headers.get("content-length", "0")
    body = bytearray()
    too_large = size.isdigit() and int(size) > limit
    if not too_large:
        async for part in http.stream():
            body += part
            if too_large := len(body) > limit:
                break
    if too_large:
        headers = {"Connection": "close"}
        raise ApiError(413, f"the body exceeds {limit_mb:g} MB", headers=headers)
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at {error.start}") from error
    return bytes(body)


async def disconnected(http: HttpRequest) -> None:
    """Return when the client goes away."""
    while (await http.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
