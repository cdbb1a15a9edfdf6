"""What the routes share: one object, made by the app factory, no globals."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from typing import cast

from fastapi import Request as HttpRequest

from greenllm.core import Receipt, Request
from greenllm.energy.ledger import Ledger
from greenllm.engine import Engine
from greenllm.engine_loop import EngineLoop
from greenllm.tokenizer import Tokenizer
from serving.bridge import Bridge, QueueFullError, Submission
from serving.config import ServeConfig
from serving.errors import ApiError
from serving.metrics import Metrics
from serving.requests import fingerprint


@dataclass(slots=True)
class ServerState:
    """A running server."""

    config: ServeConfig
    engine: Engine
    tokenizer: Tokenizer
    ledger: Ledger
    loop: EngineLoop
    bridge: Bridge
    metrics: Metrics
    draining: bool = False

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names under which clients may ask for the model; the first is the official one."""
        info = self.engine.info
        names = (self.config.served_model_name, info.name, self.config.model)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that end an answer without being part of it."""
        return self.engine.info.eos_token_ids

    def check_model(self, name: str) -> None:
        """Refuse a model that is not served; there is no silent fall back."""
        if name not in self.model_names:
            raise ApiError(
                404,
                f"the model {name!r} is not served here; it is {self.model_names[0]!r}",
                param="model",
                code="model_not_found",
            )

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

    def submit(self, request: Request, *, streaming: bool) -> Submission:
        """Check a request and hand it to the engine."""
        if self.draining or not self.loop.is_alive:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
        self.engine.check(request)
        try:
            return self.bridge.submit(request, streaming=streaming)
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
