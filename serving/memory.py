"""How much memory is left before the kernel kills: of the machine, or of this process's cgroups.

Not covered: swap, which would make everything slow before it runs out; systems without procfs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from greenllm.cgroups import cgroups, text_of

# Names of limit, use, and the line of `memory.stat` that can be given back: version 2, then 1.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int | None:
    """Bytes that can be taken yet; None where nobody tells."""
    return min((*_of_machine(proc), *_of_groups(proc, sys)), default=None)


def _of_machine(proc: Path) -> Iterator[int]:
    words = _field(text_of(proc / "meminfo"), "MemAvailable:")
    if words is not None:
        yield 1024 * words


def _of_groups(proc: Path, sys: Path) -> Iterator[int]:
    for group in cgroups("memory", proc, sys):
        for limit_name, use_name, reclaimable in _FILES:
            limit, use = text_of(group / limit_name), text_of(group / use_name)
            if limit.isdecimal() and use.isdecimal():
                given_back = _field(text_of(group / "memory.stat"), reclaimable) or 0
                yield max(0, int(limit) - int(use) + given_back)


def _field(text: str, name: str) -> int | None:
    """The number after a name at the beginning of a line."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None
