"""How soon `/health` answers, asked every 50 ms from a process of its own.

Contract: a line for each answer, with its moment (CLOCK_MONOTONIC, which all processes of a machine
share) and how long it took; none where nobody listened. One connection is kept as long as it lasts,
so that it is the server's event loop that is timed, and not the making of connections. An answer
that is late delays the next question: the worst is whole, and counts once.

    python -m evals.chaos.probe PORT FILE
"""

from __future__ import annotations

import http.client
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from greenllm.interrupts import ended_with_parent

EVERY_S = 0.05
_LONGEST_S = 120.0


@dataclass(frozen=True, slots=True)
class Health:
    """Answers of a while, and how long they took; None where there were none."""

    count: int = 0
    median_s: float | None = None
    p99_s: float | None = None
    worst_s: float | None = None


def summarize(waits_s: Sequence[float]) -> Health:
    """The figures of some waits; p99 is the smallest that no more than one in 100 is above."""
    if not waits_s:
        return Health()
    ordered = sorted(waits_s)
    p99_s = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return Health(len(ordered), statistics.median(ordered), p99_s, ordered[-1])


@dataclass(frozen=True, slots=True)
class Prober:
    """A running probe; `between` reads what it has written."""

    path: Path

    def between(self, since_s: float, until_s: float) -> Health:
        """Figures of the answers that came between two moments."""
        return summarize([wait_s for at_s, wait_s in self._answers() if since_s <= at_s < until_s])

    def _answers(self) -> Iterator[tuple[float, float]]:
        # The last line may not be whole yet.
        for line in self.path.read_text(encoding="ascii").split("\n")[:-1]:
            at_s, _, wait_s = line.partition(" ")
            yield float(at_s), float(wait_s)


@contextmanager
def probing(port: int, path: Path) -> Iterator[Prober]:
    """Probe a port of this machine for a while."""
    path.touch()
    command = [sys.executable, "-m", "evals.chaos.probe", str(port), str(path)]
    process = Popen(ended_with_parent(command))
    try:
        yield Prober(path)
    finally:
        process.terminate()
        process.wait()


def ask(connection: http.client.HTTPConnection) -> float | None:
    """Seconds to an answer of whatever status; None where there is none."""
    began_s = time.monotonic()
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return None
    return time.monotonic() - began_s


def main() -> None:
    """Probe until this process is ended."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=_LONGEST_S)
    with Path(sys.argv[2]).open("w", encoding="ascii", buffering=1) as file:
        while True:
            wait_s = ask(connection)
            if wait_s is not None:
                file.write(f"{time.monotonic():.6f} {wait_s:.6f}\n")
            time.sleep(max(0.0, EVERY_S - (wait_s or 0.0)))


if __name__ == "__main__":
    main()
