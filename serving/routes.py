"""Everything that neither generates nor is a model: tokens, energy, health, metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GROUPS, GroupSums
from greenllm.energy.period import parse_moment
from greenllm.energy.units import rounded
from greenllm.served import Served
from greenllm.tokenizer import Tokenizer
from serving.auth import Asking
from serving.errors import ApiError
from serving.http import Server, body_of, body_schema, json_response
from serving.keys.caller import Caller
from serving.limits import check_messages
from serving.openai.schemas import DetokenizeBody, TokenizeBody
from serving.receipts import receipt_object
from serving.state import ServerState

router = APIRouter()


@router.post("/tokenize", openapi_extra=body_schema(TokenizeBody))
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(state: Server, caller: Asking, http: HttpRequest) -> Response:
    """Text or messages to ids."""
    async with body_of(http, state, TokenizeBody) as (body, size):
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        served = await _served(state, body.model, caller)
        return json_response(await state.bodies.work(size, lambda: _tokens(served, body)))


async def _served(state: ServerState, asked: str | None, caller: Caller) -> Served:
    """The model that is named, or the only one."""
    if asked is None:
        return state.models.default
    return (await state.models.resolve(asked, caller)).served


def _tokens(served: Served, body: TokenizeBody) -> bytes:
    ids, limit = _ids(served.tokenizer, body), served.info.context_length
    return to_json({"tokens": ids, "count": len(ids), "max_model_len": limit})


def _ids(tokenizer: Tokenizer, body: TokenizeBody) -> list[int]:
    if body.messages is None:
        return tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    messages = check_messages([message.plain() for message in body.messages])
    return tokenizer.chat_ids(messages, add_generation_prompt=body.add_generation_prompt)


@router.post("/detokenize", openapi_extra=body_schema(DetokenizeBody))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(state: Server, caller: Asking, http: HttpRequest) -> Response:
    """Ids to text."""
    async with body_of(http, state, DetokenizeBody) as (body, size):
        served = await _served(state, body.model, caller)
        return json_response(await state.bodies.work(size, lambda: _text(served, body.tokens)))


def _text(served: Served, ids: list[int]) -> bytes:
    end = served.tokenizer.vocab_size
    if any(not 0 <= token < end for token in ids):
        raise ApiError(400, f"token ids must be in [0, {end})", param="tokens")
    return to_json({"prompt": served.tokenizer.decode(ids, skip_special_tokens=False)})


@router.get("/tokenizer_info")
@router.get("/v1/tokenizer_info", include_in_schema=False)
async def tokenizer_info(state: Server) -> dict[str, Any]:
    """Special tokens and chat template."""
    return state.models.default.tokenizer.describe()


@router.get("/v1/energy/{request_id}")
def receipt(state: Server, caller: Asking, request_id: str) -> dict[str, Any]:
    """One request's receipt, as the ledger has it."""
    found = state.ledger.receipt(request_id)
    if found is None or not caller.may_see(found.key):
        raise ApiError(404, f"no receipt for {request_id!r}", param="request_id")
    return receipt_object(found)


@router.get("/v1/energy")
def energy(
    state: Server,
    caller: Asking,
    since: str | None = None,
    until: str | None = None,
    group_by: str | None = None,
) -> dict[str, Any]:
    """Sums over a period: `since`, `until` (Unix seconds or ISO 8601) and `group_by`.

    A key sees its own sums. An administrator sees those of all, and where the server's joules went.
    """
    if group_by is not None and group_by not in GROUPS:
        choices = ", ".join(GROUPS)
        raise ApiError(400, f"group_by must be one of {choices}", param="group_by")
    rows = state.ledger.sums(
        group_by,
        since_s=_moment("since", since, 0.0),
        until_s=_moment("until", until, 1e12),
        key=None if caller.is_admin else caller.name,
    )
    return {
        "object": "energy.report",
        "group_by": group_by,
        "data": [_sums(row) for row in rows],
        "session": _session(state.totals()) if caller.is_admin else None,
    }


def _sums(row: GroupSums) -> dict[str, Any]:
    figures = {
        "group": row.group,
        "requests": row.requests,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "active_joules": row.active_j,
        "energy_joules": row.total_j,
        "gco2e": row.gco2e,
        "unmetered_requests": row.unmetered,
        "refused_requests": row.refused,
    }
    return rounded(figures)


def _session(totals: Totals) -> dict[str, Any]:
    """Where the meter's joules went, other callers' too."""
    return {**rounded(totals.told()), "residual": totals.residual}


def _moment(name: str, text: str | None, default_s: float) -> float:
    """Unix seconds of a query parameter."""
    try:
        return parse_moment(name, text, default_s)
    except ValueError as error:
        raise ApiError(400, str(error), param=name) from error


@router.get("/openapi.json", include_in_schema=False)
async def openapi(_: Server, http: HttpRequest) -> Response:
    """These routes, as OpenAPI."""
    return JSONResponse(http.app.openapi())


@router.get("/health")
async def health(state: Server) -> Response:
    """Whether the engine turns."""
    alive = state.loop.is_alive
    body = {"status": "ok" if alive else "failed"}
    return JSONResponse(body, status_code=200 if alive else 503)


@router.get("/ready")
async def ready(state: Server) -> Response:
    """Whether new requests are taken, and can be booked; if not, why."""
    troubles = {
        "the engine has stopped": not state.loop.is_alive,
        "the server is shutting down": state.draining,
        "the server is short of memory": state.supervisor.is_short_of_memory,
        "the ledger cannot be written": not state.ledger.state.is_writable,
    }
    reasons = [reason for reason, holds in troubles.items() if holds]
    body = {"ready": not reasons, "reasons": reasons, "time": time.time()}
    return JSONResponse(body, status_code=503 if reasons else 200)


@router.get("/metrics")
async def metrics(state: Server) -> Response:
    """Prometheus; where keys are required, with the scope `metrics`."""
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
