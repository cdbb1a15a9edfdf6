"""Errors as OpenAI clients expect them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from greenllm.core import InvalidRequestError

UNSUPPORTED = "unsupported"  # the type of pydantic's error for what is refused by name
_BOUNDS = ("too_long", "string_too_long")  # pydantic's
MOST_SHOWN = 128  # characters of a name that a client made up
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An answer that is an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, request_id: str) -> JSONResponse:
        """The error as an HTTP response."""
        headers = {"X-Request-Id": request_id, **self.headers}
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def from_invalid_request(error: InvalidRequestError) -> ApiError:
    """A request the engine cannot serve."""
    return ApiError(400, str(error), param=error.param, code=error.code)


def _is_name(part: int | str) -> bool:
    """Whether a part of a location is an index or a name, not pydantic's name of a union member."""
    return isinstance(part, int) or (part.isidentifier() and part.islower() and part != "str")


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, by name; a bound goes before other types."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = next((one for one in found if one["type"] in _BOUNDS), found[0])
    *outer, last = first["loc"] or ("",)
    names = [part for part in outer if _is_name(part)]
    if _is_name(last) or first["type"] == "extra_forbidden":
        names.append(last)
    param = ".".join(str(part) for part in names)[:MOST_SHOWN] or None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if first["type"] == UNSUPPORTED:
        joint = " " if first["msg"].startswith("is ") else ": "
        message = f"{param}{joint}{first['msg']}"
        return ApiError(400, message, param=param, code="unsupported_parameter")
    return ApiError(
        400, f"{param or 'the body'}: {first['msg']}", param=param, code="invalid_value"
    )
