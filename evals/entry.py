"""What the benchmarks' own commands share: names that are chosen, and how a command ends.

A mistake is one line on standard error and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence

from greenllm.core import GreenllmError


class BenchError(GreenllmError):
    """A benchmark cannot be run."""


def pick(names: Sequence[str], known: Collection[str], refusal: str) -> list[str]:
    """Names that are known; all of them without any.

    Raises:
        BenchError: one is not known; it begins with `refusal`.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(f"{refusal} {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names or known)


def split_names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",")] if text else []


def finish(name: str, command: Callable[[], object]) -> None:
    """Run a command line; `name` is the module's, as it is typed after `python -m`."""
    try:
        command()
    except GreenllmError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
