"""Moments as users write them: Unix seconds or ISO 8601."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def parse_moment(name: str, text: str | None, default_s: float) -> float:
    """Unix seconds of a moment; one without a time zone is UTC, as the ledger's hours are.

    Raises:
        ValueError: it is neither of the two.
    """
    if text is None:
        return default_s
    try:
        at_s = float(text)
    except ValueError:
        at_s = _from_iso(text)
    if not math.isfinite(at_s):
        raise ValueError(f"{name} must be Unix seconds or ISO 8601, not {text!r}")
    return at_s


def _from_iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan
