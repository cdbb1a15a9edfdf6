"""The OpenAPI document: FastAPI's, completed with what the routes do themselves.

Contract: every `$ref` leads somewhere, and every status and `X-` header of a route is listed. The
routes read their bodies and not FastAPI, so that errors are OpenAI's error objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from greenllm.energy.receipt import Receipt
from serving.openai.schemas import ChatBody, CompletionBody
from serving.receipts import energy_headers, link_headers

Json = dict[str, Any]
PUBLIC = frozenset({"/health", "/ready"})
GENERATING = (ChatBody.endpoint, CompletionBody.endpoint)
UPLOAD = "/v1/files"
# A receipt of which everything is known, for the names of headers and for examples.
KNOWN = Receipt(
    request_id="chatcmpl-0",
    model="bundled",
    outcome="completed",
    created_s=1767225600.0,
    status="final",
    method="measured:rapl",
    measured=True,
    endpoint="/v1/chat/completions",
    http_status=200,
    prompt_tokens=17,
    completion_tokens=80,
    duration_s=0.614,
    resident_s=0.614,
    active_j=9.01,
    idle_j=5.74,
    prefill_j=0.83,
    decode_j=7.96,
    draft_j=0.22,
    drafted_tokens=64,
    accepted_tokens=41,
    key="ada",
    team="editors",
    user="u-17",
    metadata={"project": "stories"},
    domains_j={"cpu": 13.2, "dram": 1.55},
    flops=5.06e8,
    uncertainty=0.06,
    attribution="ok",
    operational_g=0.00188,
    embodied_g=0.00026,
    intensity_g_per_kwh=458.29,
    intensity_zone="WORLD",
    intensity_source="Ember via Our World in Data",
    intensity_year=2025,
    pue=1.0,
)
EVERY_HEADER = tuple(energy_headers(replace(KNOWN, approximate=True)))
_OF_ALL = {
    403: "The Host, the Origin or the key's scope is not allowed here.",
    500: "A fault of the server.",
}
_OF_KEYED = {
    400: "A parameter is wrong.",
    401: "A valid key is required.",
    429: "The key has used what it may, or too many requests are in flight.",
}
# What a key with limits is told by every answer.
STANDINGS = tuple(
    f"X-RateLimit-{what}-{limit}"
    for limit in ("Requests", "Tokens", "Joules", "Grams")
    for what in ("Limit", "Remaining", "Reset")
)
_OF_BODIES = {
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not of the type that is taken.",
    503: "The server stops, or has no room for another body.",
}
_MISSING = {404: "What is named does not exist."}
_RETRYING = {429: ("Retry-After", "X-Should-Retry"), 503: ("Retry-After",)}
_OF_PROBES = {400: "A parameter is wrong.", 503: "Not now."}
_OF_UPLOADS = {411: "Uploads need a Content-Length."}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


_NOT_JSON: Mapping[str, str] = {
    "/metrics": "text/plain",
    "/v1/files/{file_id}/content": "application/octet-stream",
}


class DocumentedApp(FastAPI):
    """FastAPI with a document that is complete."""

    def openapi(self) -> Json:
        """The document, which is made once."""
        if self.openapi_schema is None:
            complete(super().openapi())
        return self.openapi_schema or {}


def complete(document: Json) -> None:
    """Add to FastAPI's document what it cannot know, in place."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operation in operations(document):
        _name_body(operation, schemas)
        _tell_answers(path, operation)
        if path not in PUBLIC:
            operation["security"] = [{"key": []}, {}]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _ERROR


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Each operation with its path."""
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _name_body(operation: Json, schemas: Json) -> None:
    """Move a body's schema, and those inside it, to where references look for them."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        if "title" in schema:
            schemas |= schema.pop("$defs", {})
            schemas[schema["title"]] = schema
            content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}


def _tell_answers(path: str, operation: Json) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    if path in GENERATING:
        answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    if path in _NOT_JSON:
        answers["200"]["content"] = {_NOT_JSON[path]: {"schema": {"type": "string"}}}
    if path not in PUBLIC:
        told = EVERY_HEADER if path in GENERATING else ()
        answers["200"]["headers"] = _headers((*told, *STANDINGS))
    for status, text in sorted(_errors(path, operation).items()):
        answers[str(status)] = _error(path, status, text)


def _errors(path: str, operation: Json) -> dict[int, str]:
    """Statuses of an operation's errors, and what they mean."""
    found = dict(_OF_ALL)
    if path in PUBLIC:
        return found | _OF_PROBES
    found |= _OF_KEYED
    if "requestBody" in operation:
        found |= _OF_BODIES | _MISSING
    if "{" in path:
        found |= _MISSING
    if path == UPLOAD and "requestBody" in operation:
        found |= _OF_UPLOADS
    return found


def _error(path: str, status: int, text: str) -> Json:
    if path in PUBLIC and status == 503:
        return {"description": text, "content": {"application/json": {"schema": {}}}}
    names = ["X-Request-Id", *_RETRYING.get(status, ()), *STANDINGS]
    if path in GENERATING and status in (500, 503):
        names += [name for name in EVERY_HEADER if name not in names]
    schema = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {
        "description": text,
        "headers": _headers(names),
        "content": {"application/json": schema},
    }


def _headers(names: Iterable[str]) -> Json:
    early = link_headers("")
    words = dict.fromkeys(early, "Always there.")
    return {
        name: {
            "description": words.get(name, "Absent when unknown."),
            "schema": {"type": "string"},
        }
        for name in names
    }
