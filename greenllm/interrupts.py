"""Ends of a command: what SIGTERM and a closed terminal do, and what a child does when left alone.

Contract: SIGTERM and SIGHUP do what Ctrl-C does at that moment, so that everything that cleans up
after an interrupt does so after them, too. They count once together: `timeout` and shells send
theirs twice, and that must not cut the cleaning short, as a second Ctrl-C does. A signal that is
ignored, as under `nohup`, stays ignored. `ended_with_parent` is for children that must not outlive
their parent even if it is killed. Not covered: children's own children; systems without prctl.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

_ENDS = ("SIGTERM", "SIGHUP")
# A process of its own asks the kernel, because what runs between fork and exec in a process with
# threads can deadlock. What it asked for survives the exec. PR_SET_PDEATHSIG is 1.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def end_like_interrupts() -> None:
    """Let SIGTERM and SIGHUP of this process do what Ctrl-C does; for the main thread."""
    for name in _ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for name in _ENDS:
        other = getattr(signal, name, None)
        if other is not None and signal.getsignal(other) is _interrupt:
            signal.signal(other, _once)
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell's background command ignores Ctrl-C, but not this
        handler = signal.default_int_handler
    handler(number, frame)


def _once(number: int, frame: FrameType | None) -> None:
    """A handler, and not SIG_IGN, which children would inherit."""


def ended_with_parent(command: Sequence[str]) -> list[str]:
    """The command for a child of this process that gets SIGTERM when this one is gone.

    More exactly, when the thread that starts it has ended.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), *command]
