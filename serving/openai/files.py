"""`/v1/files` as OpenAI has it. Only `fine-tune` is a purpose here.

A file belongs to the key that uploaded it; for others it is not there. Not covered: expiry.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serving.auth import Asking, audit
from serving.errors import ApiError
from serving.http import Server, require_type
from serving.jobs.files import PURPOSE, StoredFile
from serving.jobs.quota import QuotaError
from serving.keys.caller import Caller
from serving.state import ServerState

router = APIRouter()
_LONGEST_NAME = 255
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"const": PURPOSE},
                        "file": {"type": "string", "format": "binary"},
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post("/v1/files", openapi_extra=_FORM)
async def upload(state: Server, caller: Asking, http: HttpRequest) -> dict[str, Any]:
    """Keep an uploaded file."""
    require_type(http, "multipart/form-data")
    try:
        await asyncio.to_thread(state.files.check, caller.owner, _size_of(http, state))
        form = await http.form(max_files=1, max_fields=8)
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}") from error
    except QuotaError as error:
        raise over_quota(error) from error
    try:
        purpose, file = form.get("purpose"), form.get("file")
        if unknown := form.keys() - {"purpose", "file"}:
            name = sorted(unknown)[0]
            raise ApiError(400, f"unknown parameter: {name}", param=name, code="unknown_parameter")
        if purpose != PURPOSE:
            raise ApiError(400, f"purpose must be {PURPOSE!r}, not {purpose!r}", param="purpose")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "file is missing: send one as multipart/form-data", param="file")
        if (file.size or 0) > state.config.max_file_mb * 1_000_000:
            raise _too_large(state)
        name = Path(file.filename or "upload").name
        if len(name) > _LONGEST_NAME:
            raise ApiError(400, f"its name may have {_LONGEST_NAME} characters", param="file")
        try:
            stored = await asyncio.to_thread(state.files.add, file.file, name, caller.owner)
        except OSError as error:
            raise ApiError(500, f"the file cannot be kept: {error.strerror or error}") from error
        except QuotaError as error:
            raise over_quota(error) from error
    finally:
        await form.close()
    audit(http, "file.upload", stored.id)
    return stored.body()


def over_quota(error: QuotaError) -> ApiError:
    """The answer to a key that keeps as much as it may."""
    # Trying again does not help, and of an upload the rest is not read.
    headers = {"X-Should-Retry": "false", "Connection": "close"}
    return ApiError(429, str(error), code="insufficient_quota", headers=headers)


def _size_of(http: HttpRequest, state: ServerState) -> int:
    """Bytes of an upload, which may not be too many."""
    size = http.headers.get("content-length", "")
    if not size.isdigit():
        raise ApiError(411, "uploads need a Content-Length")
    if int(size) > (state.config.max_file_mb + 1) * 1_000_000:
        raise _too_large(state)
    return int(size)


def _too_large(state: ServerState) -> ApiError:
    return ApiError(
        413, f"the file exceeds {state.config.max_file_mb:g} MB (--max-file-mb)", param="file",
        headers={"Connection": "close"},
    )  # fmt: skip


@router.get("/v1/files")
async def files(state: Server, caller: Asking) -> dict[str, Any]:
    """List the files."""
    found = await asyncio.to_thread(state.files.all)
    data = [file.body() for file in found if caller.may_see(file.owner)]
    return {"object": "list", "data": data, "has_more": False}


@router.get("/v1/files/{file_id}")
async def file(state: Server, caller: Asking, file_id: str) -> dict[str, Any]:
    """Describe a file."""
    return find_file(state, caller, file_id, "file_id").body()


@router.get("/v1/files/{file_id}/content")
async def content(state: Server, caller: Asking, file_id: str) -> Response:
    """What is in a file."""
    found = find_file(state, caller, file_id, "file_id")
    # Whatever its name says: a browser must not take it for a page of this server.
    kind = "application/octet-stream"
    return FileResponse(state.files.path(found.id), media_type=kind, filename=found.filename)


@router.delete("/v1/files/{file_id}")
async def delete(state: Server, caller: Asking, http: HttpRequest, file_id: str) -> dict[str, Any]:
    """Delete a file; jobs that have begun have their own copy."""
    find_file(state, caller, file_id, "file_id")
    await asyncio.to_thread(state.files.remove, file_id)
    audit(http, "file.delete", file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def find_file(state: ServerState, caller: Caller, file_id: str, param: str) -> StoredFile:
    """A file by its id.

    Raises:
        ApiError: there is none that the caller may see (404).
    """
    found = state.files.find(file_id)
    if found is None or not caller.may_see(found.owner):
        raise ApiError(404, f"there is no file {file_id!r}", param=param, code="file_not_found")
    return found
