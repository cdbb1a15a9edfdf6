"""Whose joules a meter counts, and where it looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.cuda import cuda_uuids
from greenllm.energy.meters.roster import Roster
from greenllm.places import calibration_path


def work_hard(seconds: float) -> None:
    """Keep a processor busy."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


@dataclass(frozen=True, slots=True)
class Scope:
    """What is metered: by default this process and those below it, on every device.

    clock: tells whose CPU time is the own.
    devices: the GPUs that compute, as `cuda:N` in CUDA's order or by UUID; None is all that CUDA
        programs see, and () none: what computes on the CPU does not pay for others there.
    roster: the servers that share this machine's CPUs and memory; a GPU is never shared.
    sys: root of sysfs, where the kernel shows its counters.
    cuda: tells which GPUs CUDA sees, see `cuda_uuids`.
    proc: root of procfs, where it shows processors and limits.
    calibration: the file with this machine's watts, where it was calibrated.
    work: works hard for so many seconds, so that counters have something to count.
    """

    clock: CpuClock = field(default_factory=CpuClock)
    devices: tuple[str, ...] | None = None
    roster: Roster | None = None
    sys: Path = Path("/sys")
    cuda: Callable[[], tuple[str, ...] | None] = cuda_uuids
    proc: Path = Path("/proc")
    calibration: Path = field(default_factory=calibration_path)
    work: Callable[[float], None] = work_hard
