"""Bodies that a route reads and parses itself, so that refusals are OpenAI's error objects."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from serving.errors import from_validation
from serving.state import ServerState, read_body

B = TypeVar("B", bound=BaseModel)


def body_schema(model: type[BaseModel]) -> dict[str, object]:
    """OpenAPI description of such a body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


async def parsed_body(http: HttpRequest, state: ServerState, kind: type[B]) -> B:
    """Authenticate, read and validate.

    Raises:
        ApiError: no valid key, too large, or not as declared.
    """
    state.key_of(http)
    raw = await read_body(http, state.config.max_body_mb)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from error
