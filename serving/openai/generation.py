"""`POST /v1/chat/completions` and `POST /v1/completions`.

Contract: every request that reaches a handler leaves a row in the ledger, also one that is refused
here. Whom `serving.auth` does not let in leaves none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse

from greenllm.choices import gather
from greenllm.core import InvalidRequestError, Request, Token, new_request_id
from greenllm.energy.receipt import Receipt
from greenllm.model.adapter_folders import is_name
from serving.auth import caller_of
from serving.bridge import EngineDownError, Submission
from serving.errors import ApiError, from_invalid_request
from serving.http import (
    CLIENT_CLOSED_REQUEST,
    body_of,
    body_schema,
    disconnected,
    json_response,
)
from serving.intake import cancel, submit
from serving.openai.forms import BYTES_PER_TOKEN, ChatForm, Form, TextForm, encoded
from serving.openai.requests import chat_request, completion_request
from serving.openai.schemas import ChatBody, CompletionBody, SamplingBody
from serving.openai.stream import events
from serving.outcome import failure_of
from serving.receipts import energy_headers, link_headers
from serving.registry import Target
from serving.state import ServerState, state_of

router = APIRouter()
B = TypeVar("B", bound=SamplingBody)


@dataclass(frozen=True, slots=True)
class _Endpoint(Generic[B]):
    """What differs between the two endpoints."""

    body: type[B]
    id_prefix: str
    make_request: Callable[..., Request]
    make_form: Callable[[Request, Target, B], Form]


_CHAT = _Endpoint(
    ChatBody,
    "chatcmpl",
    chat_request,
    lambda request, target, body: ChatForm(request, target.served),
)
_COMPLETIONS = _Endpoint(
    CompletionBody,
    "cmpl",
    completion_request,
    lambda request, target, body: TextForm(request, target.served, echo=bool(body.echo)),
)


@router.post(ChatBody.endpoint, openapi_extra=body_schema(ChatBody))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a conversation."""
    return await _generate(http, _CHAT)


@router.post(CompletionBody.endpoint, openapi_extra=body_schema(CompletionBody))
async def completions(http: HttpRequest) -> Response:
    """Continue one or more prompts."""
    return await _generate(http, _COMPLETIONS)


async def _generate(http: HttpRequest, endpoint: _Endpoint[B]) -> Response:
    """From a body to an answer; a refusal leaves a row in the ledger too."""
    state, request_id, body = state_of(http), new_request_id(endpoint.id_prefix), None
    try:
        async with body_of(http, state, endpoint.body) as (body, size):
            # The model is looked up before its prompt costs anything.
            target = await state.models.resolve(body.model, caller_of(http))
            _check_stream(body)
            make = partial(endpoint.make_request, body, target, request_id=request_id)
            request = await state.bodies.work(size, make)
        form = endpoint.make_form(request, target, body)
        submission = await submit(state, target, request, streaming=bool(body.stream))
        http.state.submission = submission  # for the log of requests
        if body.stream:
            return _stream(state, submission, form, body)
        return await _complete(http, state, submission, form)
    except InvalidRequestError as error:
        refusal = from_invalid_request(error)
    except ApiError as error:
        refusal = error
    except EngineDownError as error:
        return ApiError(500, str(error)).response(request_id)
    state.record(_refused(http, state, request_id, body, refusal.status))
    return refusal.response(request_id)


def _check_stream(body: SamplingBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "streams carry no prompt_logprobs", param="prompt_logprobs")


def _refused(
    http: HttpRequest,
    state: ServerState,
    request_id: str,
    body: SamplingBody | None,
    http_status: int,
) -> Receipt:
    """The row of a refused request; its few joules are part of `idle` or of others' windows.

    It is under the model's official name and names the adapter that was asked for, there or not,
    if it could be one's name: a client may ask for anything.
    """
    caller, asked = caller_of(http), None if body is None else body.model
    adapter = None if asked is None else state.models.split(asked, caller).adapter
    known = adapter is None or is_name(adapter)
    return Receipt(
        request_id=request_id,
        model=state.models.default.name,
        asked_model=asked if known else None,
        outcome="refused",
        created_s=time.time(),
        status="unmetered",
        method="none",
        measured=False,
        endpoint=http.url.path,
        adapter=adapter if known else None,
        http_status=http_status,
        key=caller.name,
        team=caller.team,
        user=None if body is None else body.user,
        metadata={} if body is None else body.metadata or {},
    )


def _stream(state: ServerState, submission: Submission, form: Form, body: SamplingBody) -> Response:
    options = body.stream_options
    return StreamingResponse(
        events(
            submission,
            form,
            include_usage=options is not None and options.include_usage,
            keep_alive_s=state.config.keep_alive_s,
            interval_s=state.config.stream_interval_s,
            on_end=partial(cancel, state, submission),
        ),
        media_type="text/event-stream",
        headers={**link_headers(form.request.request_id), "Cache-Control": "no-cache"},
    )


async def _complete(
    http: HttpRequest, state: ServerState, submission: Submission, form: Form
) -> Response:
    tokens = await _wait(http, state, submission)
    if tokens is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    receipt = submission.receipt
    if receipt is None:
        raise EngineDownError("the request ended without a receipt")
    headers = energy_headers(receipt)
    detail = next((token.error for token in tokens if token.error), "")
    failure = failure_of(receipt.outcome, detail)
    if failure is not None:
        failure.headers |= headers
        return failure.response(form.request.request_id)
    try:
        size = len(tokens) * BYTES_PER_TOKEN * (1 + (form.request.sampling.logprobs or 0))
        content = await state.bodies.work(size, lambda: _written(form, tokens, receipt))
        return json_response(content, headers)
    except Exception:
        # The ledger has the status that was decided with the receipt; the client gets another.
        state.loop.record(replace(receipt, http_status=500))
        raise


def _written(form: Form, tokens: list[Token], receipt: Receipt) -> bytes:
    choices = gather(tokens, form.request.num_sequences, form.hidden_ids)
    return encoded(form.answer(choices, receipt))


async def _wait(
    http: HttpRequest, state: ServerState, submission: Submission
) -> list[Token] | None:
    """Wait for the answer; None when the client went away, and then nothing more is computed."""
    answer = asyncio.create_task(submission.complete())
    gone = asyncio.create_task(disconnected(http))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return await answer if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()
        cancel(state, submission)
