"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from greenllm.core import InvalidRequestError, Request, Token
from greenllm.energy.receipt import Receipt
from greenllm.model.adapter_folders import is_name
from serving.bridge import EngineDownError, Submission
from serving.errors import ApiError, from_invalid_request, from_validation
from serving.http import body_schema
from serving.openai.answers import Choice, chat_answer, gather, text_answer
from serving.openai.models import find_adapter
from serving.openai.requests import chat_request, completion_request, new_request_id
from serving.openai.schemas import ChatBody, CompletionBody, SamplingBody
from serving.openai.stream import ChatChunks, TextChunks, events, failure_of
from serving.receipts import energy_headers, link_headers
from serving.state import ServerState, disconnected, read_body, state_of

router = APIRouter()
B = TypeVar("B", bound=SamplingBody)
CLIENT_CLOSED_REQUEST = 499
UNAUTHORIZED = 401
LONG_BODY_BYTES = 100_000


@dataclass(slots=True)
class _Asked:
    """What is known of a request so far, for its row should it be refused."""

    request_id: str
    adapter: str | None = None


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatBody))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a conversation."""
    state = state_of(http)
    asked = _Asked(new_request_id("chatcmpl"))

    async def answer() -> Response:
        body, key, size = await _open(http, state, ChatBody, asked)
        make = partial(
            chat_request,
            body,
            state.tokenizer,
            request_id=asked.request_id,
            key=key,
            context=state.engine.info.context_length,
            defaults=state.defaults,
        )
        request = await _made(make, size)
        if body.stream:
            chunks = ChatChunks(request, state.tokenizer, _hidden(state, request))
            return await _stream(state, request, body, chunks)
        return await _complete(
            http,
            state,
            request,
            lambda choices, receipt: chat_answer(request, choices, receipt, state.tokenizer),
        )

    return await _guarded(http, state, asked, answer)


@router.post("/v1/completions", openapi_extra=body_schema(CompletionBody))
async def completions(http: HttpRequest) -> Response:
    """Continue one or more prompts."""
    state = state_of(http)
    asked = _Asked(new_request_id("cmpl"))

    async def answer() -> Response:
        body, key, size = await _open(http, state, CompletionBody, asked)
        make = partial(
            completion_request,
            body,
            state.tokenizer,
            request_id=asked.request_id,
            key=key,
            defaults=state.defaults,
        )
        request = await _made(make, size)
        echo = bool(body.echo)
        if body.stream:
            hidden = _hidden(state, request)
            chunks = TextChunks(request, state.tokenizer, hidden, echo=echo)
            return await _stream(state, request, body, chunks)
        return await _complete(
            http,
            state,
            request,
            lambda choices, receipt: text_answer(
                request, choices, receipt, state.tokenizer, echo=echo
            ),
        )

    return await _guarded(http, state, asked, answer)


async def _made(make: Callable[[], Request], size: int) -> Request:
    """Encoding a text of megabytes takes seconds: the event loop does not wait for it."""
    return await asyncio.to_thread(make) if size > LONG_BODY_BYTES else make()


async def _open(
    http: HttpRequest, state: ServerState, kind: type[B], asked: _Asked
) -> tuple[B, str | None, int]:
    """Authenticate, read, validate, and look the model up before its prompt costs anything.

    Returns the body, the key's fingerprint and the size.
    """
    key = state.key_of(http)
    raw = await read_body(http, state.config.max_body_mb)
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from error
    _, adapter = state.model_and_adapter(body.model)
    # A client may ask for anything; the ledger keeps what could be an adapter's name.
    asked.adapter = adapter if adapter is not None and is_name(adapter) else None
    await find_adapter(state, body.model)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "streams carry no prompt_logprobs", param="prompt_logprobs")
    return body, key, len(raw)


async def _guarded(
    http: HttpRequest,
    state: ServerState,
    asked: _Asked,
    answer: Callable[[], Awaitable[Response]],
) -> Response:
    """Run a handler; whatever refuses the request leaves a row in the ledger.

    Callers without a valid key leave none: they could fill the disk.
    """
    try:
        return await answer()
    except InvalidRequestError as error:
        refusal = from_invalid_request(error)
    except ApiError as error:
        refusal = error
    except EngineDownError as error:
        return ApiError(500, str(error)).response(asked.request_id)
    if refusal.status != UNAUTHORIZED:
        _record_refusal(http, state, asked, refusal.status)
    return refusal.response(asked.request_id)


def _record_refusal(http: HttpRequest, state: ServerState, asked: _Asked, http_status: int) -> None:
    """A refused request has a row too; its few joules are part of `idle` or of others' windows.

    The row is under the served model and names the adapter that was asked for, there or not.
    """
    receipt = Receipt(
        request_id=asked.request_id,
        model=state.model_names[0],
        outcome="refused",
        created_s=time.time(),
        status="unmetered",
        method="none",
        measured=False,
        endpoint=http.url.path,
        adapter=asked.adapter,
        http_status=http_status,
        key=state.key_of(http),
    )
    state.record_refusal(receipt)


def _hidden(state: ServerState, request: Request) -> frozenset[int]:
    """Ids that end a chat answer without being part of it; completions score every token."""
    if request.endpoint == "/v1/completions":
        return frozenset()
    return state.hidden_ids | frozenset(request.sampling.stop_token_ids)


async def _stream(
    state: ServerState, request: Request, body: SamplingBody, chunks: ChatChunks | TextChunks
) -> Response:
    submission = await state.submit(request, streaming=True)
    options = body.stream_options
    return StreamingResponse(
        events(
            submission,
            state.bridge,
            chunks,
            include_usage=options is not None and options.include_usage,
            keep_alive_s=state.config.keep_alive_s,
            interval_s=state.config.stream_interval_s,
        ),
        media_type="text/event-stream",
        headers={**link_headers(request.request_id), "Cache-Control": "no-cache"},
    )


async def _complete(
    http: HttpRequest,
    state: ServerState,
    request: Request,
    make_body: Callable[[list[Choice], Receipt], dict[str, object]],
) -> Response:
    submission = await state.submit(request, streaming=False)
    tokens = await _wait(http, state, submission)
    if tokens is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    receipt = submission.receipt
    if receipt is None:
        raise EngineDownError("the request ended without a receipt")
    failure = next((error for error in map(failure_of, tokens) if error), None)
    if failure is not None:
        failure.headers |= energy_headers(receipt)
        return failure.response(request.request_id)
    choices = gather(tokens, request.num_sequences, _hidden(state, request))
    return JSONResponse(make_body(choices, receipt), headers=energy_headers(receipt))


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
        state.bridge.cancel(submission)
