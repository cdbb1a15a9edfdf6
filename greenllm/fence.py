"""A fence around the work of one row of a batch: what fails in it ends that row's request alone.

Contract: inside is only what belongs to one request: choosing its next token, its log
probabilities, its text, its place in the queue. What all requests share (the model's step, the
meter, the ledger) stays outside: what is wrong there is wrong for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
F = TypeVar("F")


def fenced(work: Callable[[], T], failed: Callable[[str], F]) -> T | F:
    """What `work` returns; where it raises, what `failed` makes of the error in words."""
    try:
        return work()
    except Exception as error:
        log.exception("the work for one request failed")
        return failed(f"{type(error).__name__}: {error}")
