"""What commands of their own share: how they end, and what results say of where they are from.

Contract: a mistake is one line on standard error and exit code 2. A result names its command and
machine; of folders of this machine it has the last part only.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from greenllm.core import GreenllmError
from greenllm.interrupts import end_like_interrupts
from greenllm.scorecard.origin import machine_name


class BenchError(GreenllmError):
    """A benchmark cannot be run."""


def finish(module: str, command: Callable[[], object]) -> None:
    """Run a command line; `module` is what is typed after `python -m`."""
    end_like_interrupts()
    mistakes: list[BaseException] = []
    try:
        command()
    except* GreenllmError as group:
        mistakes = [_first_of(group)]
    if mistakes:
        print(f"{module}: {mistakes[0]}", file=sys.stderr)
        sys.exit(2)


def _first_of(error: BaseException) -> BaseException:
    """The first of a group of errors, such as tasks that run side by side end in."""
    return _first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def origin(module: str) -> dict[str, str]:
    """Command, date, machine and versions, for a result."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", "-m", module, *words]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
