"""How tests wait: for a condition, with a bound that only a test that hangs ever reaches.

No test asserts how long something took: a machine that others use too may take any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 600.0
_LOOK_EVERY_S = 0.01
T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
    """Look until `condition` returns something true, which is returned.

    Raises:
        AssertionError: `patience_s` seconds did not suffice for `what`.
    """
    end_s = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"waited {patience_s:g} s for {what}"
        time.sleep(_LOOK_EVERY_S)
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; an orphan may wait for its reaper."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
