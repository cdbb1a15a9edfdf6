"""The HTTP status of an answer: decided here, for the client and for the ledger alike."""

from __future__ import annotations

from typing import Final

from greenllm.core import FinishReason
from greenllm.energy.receipt import Outcome
from serving.errors import ApiError

FAILURES: Final[dict[FinishReason | None, Outcome]] = {"error": "failed", "abort": "aborted"}
_STATUS: Final[dict[Outcome, int]] = {"completed": 200, "failed": 500, "aborted": 503}


def outcome_of(finish_reason: FinishReason | None) -> Outcome:
    """How a request ends whose sequence ends so, as far as this sequence tells."""
    return FAILURES.get(finish_reason, "completed")


def status_of(outcome: Outcome, *, streaming: bool, client_left: bool) -> int | None:
    """The status that the client is sent; None when it left before there was an answer.

    A stream begins with 200 before its end is known.
    """
    if streaming:
        return _STATUS["completed"]
    return None if outcome == "aborted" and client_left else _STATUS[outcome]


def failure_of(outcome: Outcome, detail: str = "") -> ApiError | None:
    """The error for a request that ended before its time; None for one that did not."""
    if outcome == "failed":
        return ApiError(_STATUS[outcome], f"generation failed: {detail}")
    if outcome == "aborted":
        return ApiError(_STATUS[outcome], "the server shut down before the answer was complete")
    return None
