"""Daemon threads that end with the object they work for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable


def repeat(name: str, turn: Callable[[], float]) -> None:
    """Call a method again and again, after the seconds it returns, for as long as its object lives.

    The method must not raise.
    """
    method = weakref.WeakMethod(turn)

    def run() -> None:
        wait_s: float | None = 0.0
        while wait_s is not None:
            time.sleep(wait_s)
            alive = method()
            wait_s = None if alive is None else alive()
            del alive

    threading.Thread(target=run, name=name, daemon=True).start()
