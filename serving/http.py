"""HTTP as the routes need it: status codes, bodies read up to a limit, clients that leave."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

from fastapi import Depends
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from serving.errors import ApiError, from_validation
from serving.state import ServerState, state_of

B = TypeVar("B", bound=BaseModel)
CLIENT_CLOSED_REQUEST = 499
# Encoding the text of a body this long takes so long that it leaves the event loop.
LONG_BODY_BYTES = 100_000


def body_schema(model: type[BaseModel]) -> dict[str, object]:
    """OpenAPI description of a body that a route reads itself, for OpenAI's error objects."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


async def server(http: HttpRequest) -> ServerState:
    """The server; a coroutine, because others are called in threads."""
    return state_of(http)


Server = Annotated[ServerState, Depends(server)]


async def parsed_body(http: HttpRequest, state: ServerState, kind: type[B]) -> B:
    """Read and validate.

    Raises:
        ApiError: too large, or not as declared.
    """
    return validated(kind, await read_body(http, state.config.max_body_mb))


def validated(kind: type[B], raw: bytes) -> B:
    """A body as declared.

    Raises:
        ApiError: it names the first thing that is wrong.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from error


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
