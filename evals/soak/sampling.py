"""What a server's process has at a moment, from /proc, and how large its ledger is.

Contract: Linux. Figures are those of the server's own process; training runs in a child, whose
memory is not in them. A process that has ended is a `ProcessError`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from evals.load.processes import PROC, ProcessError, all_stats, tree_of

_ENDINGS = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a process."""

    at_s: float
    rss_bytes: int
    threads: int
    descriptors: int
    children: int
    ledger_bytes: int


def look(pid: int, ledger: Path, at_s: float) -> Sample:
    """Look once.

    Raises:
        ProcessError: there is no such process, or it may not be looked at.
    """
    folder = PROC / str(pid)
    try:
        lines = (folder / "status").read_text().splitlines()
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        return Sample(
            at_s=at_s,
            rss_bytes=1024 * int(status["VmRSS"][0]),
            threads=int(status["Threads"][0]),
            descriptors=len(os.listdir(folder / "fd")),
            children=len(tree_of(pid, all_stats())) - 1,
            ledger_bytes=sum(_size(ledger.with_name(ledger.name + end)) for end in _ENDINGS),
        )
    except (OSError, KeyError, ValueError) as error:
        raise ProcessError(f"the server's process {pid} cannot be looked at: {error}") from error


async def watch(pid: int, ledger: Path, every_s: float, samples: list[Sample]) -> None:
    """Look again and again until it is cancelled."""
    began_s = time.monotonic()
    while True:
        samples.append(look(pid, ledger, time.monotonic() - began_s))
        await asyncio.sleep(every_s)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
