"""The way of a request into the engine, and out of it when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from greenllm.core import Request
from greenllm.energy.account.bill import Bill
from serving.auth import require_place
from serving.bridge import QueueFullError, Submission
from serving.errors import ApiError
from serving.registry import Target
from serving.state import ServerState

T = TypeVar("T")


async def submit(
    state: ServerState, target: Target, request: Request, *, streaming: bool
) -> Submission:
    """Check a request, get ready what it needs, and hand it to the engine.

    Raises:
        ApiError: the server stops (503), is full or busy enough with this key (429), or its
            adapter cannot be used.
        InvalidRequestError: the engine cannot serve it.
    """
    engine = target.served.engine
    _check(state, target, request)
    if request.needs_preparation:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(state.preparing, engine.prepare, request)
        _check(state, target, request)
    adapter = await state.models.acquire(target)
    if adapter is None:
        return _hand_over(state, target, request, streaming=streaming)
    try:
        request = replace(request, adapter=adapter)
        _check(state, target, request)
        return _hand_over(state, target, request, streaming=streaming)
    except BaseException:
        engine.adapters.release(adapter)
        raise


def cancel(state: ServerState, submission: Submission) -> None:
    """The client is gone: stop generating. The receipt still goes to the ledger."""
    if state.bridge.leave(submission):
        state.loop.abort(submission.request.request_id)


def cancel_all(state: ServerState) -> None:
    """The time to finish is over: every request ends with what it has."""
    for request_id in state.bridge.open_ids():
        state.loop.abort(request_id)


def _check(state: ServerState, target: Target, request: Request) -> None:
    if state.draining or not state.loop.is_alive:
        raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
    if state.supervisor.is_short_of_memory:
        raise ApiError(
            503,
            "the server is short of memory; try again later",
            code="out_of_memory",
            headers={"Retry-After": "5"},
        )
    target.served.engine.check(request)
    _with_room(lambda: state.bridge.check_room(request))


def _hand_over(
    state: ServerState, target: Target, request: Request, *, streaming: bool
) -> Submission:
    require_place(state, target.caller)  # others have come since it was let in
    submission = _with_room(lambda: state.bridge.open(request, streaming=streaming))
    if streaming:
        # Its client is told its id at once, and so it has a row whatever happens.
        meter = target.served.engine.account.meter
        bill = Bill(request, opened_s=0.0)
        state.ledger.opened(state.session_id, bill.if_lost(meter, 0.0, has_worked=True))
    state.loop.submit(request)
    return submission


def _with_room(act: Callable[[], T]) -> T:
    try:
        return act()
    except QueueFullError as error:
        raise ApiError(
            429,
            f"{error}; try again later",
            code="queue_full",
            headers={"Retry-After": str(error.retry_after_s)},
        ) from error
