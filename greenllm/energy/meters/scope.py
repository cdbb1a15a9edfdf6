"""Whose joules a meter counts, and where it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.roster import Roster


@dataclass(frozen=True, slots=True)
class Scope:
    """What is metered: by default this process and those below it, on every device.

    clock: tells whose CPU time is the own.
    gpus: whether joules of GPUs count; what computes on the CPU does not pay for others there.
    roster: the servers that share this machine's CPUs and memory; a GPU is never shared.
    sys: root of sysfs, where the kernel shows its counters.
    proc: root of procfs, where it shows processors and limits.
    """

    clock: CpuClock = field(default_factory=CpuClock)
    gpus: bool = True
    roster: Roster | None = None
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
