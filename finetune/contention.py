"""Training beside other programs: threads that wait do not burn the wait, and the user is told.

Contract: `bound_spinning` comes before torch is imported. Threads of a step wait for each other at
its end; where another program has taken a core, by default they spin through that program's whole
turn, which multiplied time and joules by up to thirty here. Spinning for some microseconds only,
then sleeping, costs nothing measurable alone. What the environment says goes first.

Not covered: threads of other OpenMP libraries than GNU's; programs that come later.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from greenllm.energy.meters.cputime import CpuTimes

_SPINS = "3000"
_MATTERS = 0.3


def bound_spinning() -> None:
    """Let GNU OpenMP's threads sleep soon; `OMP_WAIT_POLICY` or a count that is set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def warn_of_others(
    times: CpuTimes, duration_s: float, threads: int, cpus: int, say: Callable[[str], None]
) -> None:
    """Say so if other programs need CPUs that the threads would have."""
    if duration_s <= 0:
        return
    others = (times.machine_s - times.own_s) / duration_s
    if others < _MATTERS or threads == 1 or threads + others < cpus + _MATTERS:
        return
    say(
        f"other programs keep {others:.1f} of {cpus} CPUs busy, and {threads} threads wait for each"
        f" other: --threads {max(1, int(cpus - others))} may need less time and fewer joules"
    )
