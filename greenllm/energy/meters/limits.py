"""The part of a machine's processors that this process may use: affinity, cpuset and quota.

Contract: `cpu_share` reads `/proc/self/status`, whose allowed CPUs are those of the affinity within
the cpuset, and the CPU quota of this process's cgroup and of those above it (version 2, else 1).
The smaller of the two is the share; None stands for a process that may use the whole machine.

Not covered: CPU weights, which limit nobody while there is room; limits that change while the
process runs; quotas of cgroups above a container, which it cannot see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from greenllm.cgroups import cgroups, text_of

_BUSY_FIELDS = (1, 2, 3, 6, 7)
_QUOTA_V1, _PERIOD_V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@dataclass(frozen=True, slots=True)
class CpuShare:
    """Less than a whole machine.

    Attributes:
        num_cpus: How many hardware threads' worth of time. [hardware threads]
        key: The same for processes that use the same share, and for no others.
        busy_s: CPU seconds that were used of it so far, by whomever; None if that cannot be told.
    """

    num_cpus: float
    key: str
    busy_s: Callable[[], float | None]


def cpu_share(
    num_vcpus: int, proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> CpuShare | None:
    """The share of a machine with so many hardware threads; None for all of it."""
    online = frozenset(_numbers(text_of(sys / "devices/system/cpu/online")))
    allowed = frozenset(_allowed(proc))
    allowed = (allowed & online) or allowed or frozenset(range(num_vcpus))
    num_allowed = min(len(allowed), num_vcpus)
    group, quota = min(
        _quotas(proc, sys), key=lambda found: found[1], default=(None, float(num_vcpus))
    )
    if group is not None and quota < num_allowed:
        return CpuShare(quota, f"quota {group}", partial(_used_by_group_s, group))
    if num_allowed < num_vcpus:
        name = ",".join(map(str, sorted(allowed)))
        return CpuShare(num_allowed, f"cpus {name}", partial(_used_on_cpus_s, proc, allowed))
    return None


def allowed_threads(num_vcpus: int, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """How many hardware threads this process can keep busy at once, one at least."""
    share = cpu_share(num_vcpus, proc, sys)
    return num_vcpus if share is None else max(1, int(share.num_cpus))


def _allowed(proc: Path) -> Iterator[int]:
    """The CPUs that this process may run on; none where that is not told."""
    for line in text_of(proc / "self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            yield from _numbers(value)


def _numbers(ranges: str) -> Iterator[int]:
    """The numbers of a list like `0-3,8`."""
    for part in filter(None, ranges.strip().split(",")):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), int(last or first) + 1)


def _quotas(proc: Path, sys: Path) -> Iterator[tuple[Path, float]]:
    """The CPU quotas of this process's cgroup and of those above it, each with its folder."""
    for folder in cgroups("cpu", proc, sys):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = text_of(folder / _QUOTA_V1), text_of(folder / _PERIOD_V1)
        if quota.isdecimal() and period.isdecimal() and int(quota) * int(period):
            yield folder, int(quota) / int(period)


def _used_by_group_s(group: Path) -> float | None:
    """CPU seconds of all processes of a cgroup."""
    for line in text_of(group / "cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec":
            return int(value) * 1e-6
    used_ns = text_of(group / "cpuacct.usage")
    return int(used_ns) * 1e-9 if used_ns.isdecimal() else None


def _used_on_cpus_s(proc: Path, cpus: frozenset[int]) -> float | None:
    """CPU seconds that some CPUs were busy."""
    names = {f"cpu{number}" for number in cpus}
    lines = [line.split() for line in text_of(proc / "stat").splitlines()]
    found = [words for words in lines if words and words[0] in names]
    ticks = sum(int(words[field]) for words in found for field in _BUSY_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK") if found else None
