"""The app factory: routes, error handlers, start and stop.

Contract: `create_app` has no side effects; the engine thread starts and stops with the app's
lifespan. Refused requests and unknown paths answer with OpenAI's error object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from greenllm import __version__
from greenllm.core import InvalidRequestError, new_request_id
from serving import routes
from serving.auth import admit
from serving.config import HttpOptions
from serving.errors import ApiError, from_invalid_request
from serving.gate import Gate
from serving.http import CLIENT_CLOSED_REQUEST
from serving.keys.headers import LimitHeaders
from serving.openai import files, fine_tuning, generation, models
from serving.openapi import DocumentedApp
from serving.patience import Patience
from serving.request_log import Log, RequestLog
from serving.state import ServerState

# No pages that load scripts from elsewhere, and no redirects to wherever a client says it is.
PLAIN: dict[str, Any] = {
    "openapi_url": None,
    "docs_url": None,
    "redoc_url": None,
    "redirect_slashes": False,
}
MakeState = Callable[[asyncio.AbstractEventLoop], ServerState]


def create_app(make_state: MakeState, options: HttpOptions, log: Log | None = None) -> FastAPI:
    """Build the app; `make_state` is called on the running event loop at start."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = make_state(asyncio.get_running_loop())
        app.state.server = state
        state.loop.start()
        jobs = asyncio.create_task(state.jobs.run())
        supervising = asyncio.create_task(state.supervisor.run())
        try:
            yield
        finally:
            state.draining = True
            supervising.cancel()
            await state.jobs.stop(state.config.drain_timeout_s)
            await jobs
            state.preparing.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(state.loop.stop)
            state.ledger.close()

    app = DocumentedApp(
        title="greenllm",
        version=__version__,
        summary="OpenAI-compatible inference; every answer carries its joules.",
        lifespan=lifespan,
        **PLAIN,
        dependencies=[Depends(admit)],
    )
    app.add_middleware(LimitHeaders)
    app.include_router(generation.router)
    app.include_router(models.router)
    app.include_router(files.router)
    app.include_router(fine_tuning.router)
    app.include_router(routes.router)
    answer_errors(app)
    guard(app, options, log)
    return app


def guard(app: FastAPI, options: HttpOptions, log: Log | None) -> None:
    """Put before an app what every request passes, the last first."""
    app.add_middleware(Patience, timeout_s=options.client_timeout_s)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Gate, options=options)
    if log is not None:
        app.add_middleware(RequestLog, log=log)


def answer_errors(app: FastAPI) -> None:
    """Have an app answer whatever goes wrong with OpenAI's error object."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(InvalidRequestError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_crash)


async def _on_api_error(_: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error.response(new_request_id("req"))


async def _on_invalid_request(_: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, InvalidRequestError):
        raise error
    return from_invalid_request(error).response(new_request_id("req"))


async def _on_invalid_query(_: HttpRequest, error: Exception) -> Response:
    """A parameter of the path or the query; bodies are validated by `http.validated`."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = str(first["loc"][-1])
    refusal = ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_value")
    return refusal.response(new_request_id("req"))


async def _on_http_error(http: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"{http.method} {http.url.path}: {error.detail}"
    refusal = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    return refusal.response(new_request_id("req"))


async def _on_disconnect(_: HttpRequest, __: Exception) -> Response:
    """The client left before its request was complete: nobody reads this answer."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_crash(_: HttpRequest, error: Exception) -> Response:
    """A bug: the log has the traceback, the client an error object."""
    return ApiError(500, f"internal error: {type(error).__name__}").response(new_request_id("req"))
