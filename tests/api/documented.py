"""Whether an answer is one that the OpenAPI document lists."""

from __future__ import annotations

import re
from typing import Any

import httpx

TOLD = re.compile(r"x-.*|link|retry-after")


def check_documented(document: dict[str, Any], answer: httpx.Response) -> None:
    """The operation, its status, its type and the headers that clients may want."""
    operation = operation_of(document, answer.request)
    if operation is None:
        return
    listed = operation["responses"]
    status, what = str(answer.status_code), f"{answer.request.url.path}: {answer.status_code}"
    assert status in listed, what
    headers = {name.lower() for name in listed[status].get("headers", ())}
    told = {name.lower() for name in answer.headers if TOLD.fullmatch(name.lower())}
    assert told <= headers, f"{what}: {told - headers}"
    types = listed[status].get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in types or kind == "", what


def operation_of(document: dict[str, Any], request: httpx.Request) -> dict[str, Any] | None:
    """What answers a request; None where nothing documented does."""
    for path, item in document["paths"].items():
        pattern = re.sub(r"\\{.*?\\}", "[^/]+", re.escape(path))
        found: dict[str, Any] | None = item.get(request.method.lower())
        if found is not None and re.fullmatch(pattern, request.url.path):
            return found
    return None
