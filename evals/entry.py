"""How the benchmarks' own commands end: a mistake is one line on standard error and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from greenllm.core import GreenllmError


def finish(name: str, command: Callable[[], object]) -> None:
    """Run a command line; `name` is the module's, as it is typed after `python -m`."""
    try:
        command()
    except GreenllmError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
