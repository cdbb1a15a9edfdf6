"""Daemon threads that end with the object they work for."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable

log = logging.getLogger(__name__)

_AFTER_ERROR_S = 5.0


def repeat(name: str, turn: Callable[[], float]) -> None:
    """Call a method again and again, after the seconds it returns, for as long as its object lives.

    A method that raises is logged, and called again after five seconds.
    """
    method = weakref.WeakMethod(turn)

    def run() -> None:
        wait_s: float | None = 0.0
        while wait_s is not None:
            time.sleep(wait_s)
            alive = method()
            try:
                wait_s = None if alive is None else alive()
            except Exception:
                log.exception("%s: an error; it goes on", name)
                wait_s = _AFTER_ERROR_S
            del alive

    threading.Thread(target=run, name=name, daemon=True).start()
