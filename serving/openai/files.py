"""`/v1/files` as OpenAI has it. Only `fine-tune` is a purpose here.

Not covered: files of one key hidden from another's; expiry.
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

from serving.errors import ApiError
from serving.http import Server, require_type
from serving.jobs.files import PURPOSE, StoredFile
from serving.limits import MOST_NAME_CHARACTERS
from serving.state import ServerState

router = APIRouter()
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
async def upload(state: Server, http: HttpRequest) -> dict[str, Any]:
    """Keep an uploaded file."""
    require_type(http, "multipart/form-data")
    _refuse_large(http, state)
    try:
        form = await http.form(max_files=1, max_fields=8)
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}") from error
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
        if len(name) > MOST_NAME_CHARACTERS:
            text = f"the file's name has {len(name)} characters, at most {MOST_NAME_CHARACTERS}"
            raise ApiError(400, text, param="file")
        try:
            stored = await asyncio.to_thread(state.files.add, file.file, name)
        except OSError as error:
            raise ApiError(500, f"the file cannot be kept: {error.strerror or error}") from error
    finally:
        await form.close()
    return stored.body()


def _refuse_large(http: HttpRequest, state: ServerState) -> None:
    size = http.headers.get("content-length", "")
    if not size.isdigit():
        raise ApiError(411, "uploads need a Content-Length")
    if int(size) > (state.config.max_file_mb + 1) * 1_000_000:
        raise _too_large(state)


def _too_large(state: ServerState) -> ApiError:
    return ApiError(
        413, f"the file exceeds {state.config.max_file_mb:g} MB (--max-file-mb)", param="file",
        headers={"Connection": "close"},
    )  # fmt: skip


@router.get("/v1/files")
async def files(state: Server) -> dict[str, Any]:
    """List the files."""
    found = await asyncio.to_thread(state.files.all)
    return {"object": "list", "data": [file.body() for file in found], "has_more": False}


@router.get("/v1/files/{file_id}")
async def file(state: Server, file_id: str) -> dict[str, Any]:
    """Describe a file."""
    return find_file(state, file_id, "file_id").body()


@router.get("/v1/files/{file_id}/content")
async def content(state: Server, file_id: str) -> Response:
    """What is in a file."""
    found = find_file(state, file_id, "file_id")
    return FileResponse(state.files.path(found.id), filename=found.filename)


@router.delete("/v1/files/{file_id}")
async def delete(state: Server, file_id: str) -> dict[str, Any]:
    """Delete a file; jobs that have begun have their own copy."""
    find_file(state, file_id, "file_id")
    await asyncio.to_thread(state.files.remove, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def find_file(state: ServerState, file_id: str, param: str) -> StoredFile:
    """A file by its id.

    Raises:
        ApiError: there is none (404).
    """
    found = state.files.find(file_id)
    if found is None:
        raise ApiError(404, f"there is no file {file_id!r}", param=param, code="file_not_found")
    return found
