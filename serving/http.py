"""HTTP as the routes need it: status codes, keys, bodies that are validated, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import Depends
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from serving.errors import MOST_SHOWN, ApiError, from_validation
from serving.limits import MOST_VALUES, has_too_many_values
from serving.state import ServerState, state_of

B = TypeVar("B", bound=BaseModel)
CLIENT_CLOSED_REQUEST = 499


def body_schema(model: type[BaseModel]) -> dict[str, object]:
    """OpenAPI description of a body that a route reads itself, for OpenAI's error objects."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


async def server(http: HttpRequest) -> ServerState:
    """The server, for a caller who asks only what the route knows.

    A coroutine, because others are called in threads.

    Raises:
        ApiError: a parameter of the query is unknown.
    """
    known = {param.alias for param in http.scope["route"].dependant.query_params}
    if unknown := sorted(set(http.query_params) - known):
        name = unknown[0][:MOST_SHOWN]
        raise ApiError(400, f"unknown parameter: {name}", param=name, code="unknown_parameter")
    return state_of(http)


Server = Annotated[ServerState, Depends(server)]


async def parsed_body(http: HttpRequest, state: ServerState, kind: type[B]) -> B:
    """Read and validate.

    Raises:
        ApiError: too large, or not as declared.
    """
    async with body_of(http, state, kind) as (body, _):
        return body


@asynccontextmanager
async def body_of(
    http: HttpRequest, state: ServerState, kind: type[B]
) -> AsyncIterator[tuple[B, int]]:
    """A caller's validated body and its size; it counts as held as long as the context lasts.

    Raises:
        ApiError: of another type, too large, or not as declared.
    """
    require_type(http, "application/json")
    async with state.bodies.read(http) as raw:
        yield await state.bodies.work(len(raw), lambda: validated(kind, raw)), len(raw)


def require_type(http: HttpRequest, media_type: str) -> None:
    """Refuse a body that does not say it is of a type, as those of other sites' forms do not.

    Raises:
        ApiError: it says something else, or nothing.
    """
    given = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise ApiError(
            415,
            f"the body is {given[:MOST_SHOWN] or 'of no type'}: send {media_type}, with the header"
            f" Content-Type: {media_type}",
            code="unsupported_media_type",
        )


def validated(kind: type[B], raw: bytes) -> B:
    """A body as declared.

    Raises:
        ApiError: it names the first thing that is wrong.
    """
    if has_too_many_values(raw):
        counted = "commas and opening brackets"
        raise ApiError(400, f"the body has more than {MOST_VALUES} {counted}, send it in parts")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from error


def json_response(content: bytes, headers: dict[str, str] | None = None) -> Response:
    """An answer whose JSON has been written already."""
    return Response(content, headers=headers, media_type="application/json")


async def disconnected(http: HttpRequest) -> None:
    """Return when the client goes away."""
    while (await http.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
