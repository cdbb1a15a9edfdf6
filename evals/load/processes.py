"""What a server takes, from outside: CPU seconds and memory of its whole process tree, from /proc.

Contract: Linux. CPU time is user and system time of the process and all that descend from it.
Children that ended are in their parent's count of waited-for children; what is started between
two looks and leaves its parent behind is not seen. Known processes are followed, by start time,
when their parent dies. Resolution is the kernel's tick (10 ms). Memory is the largest sum of PSS
over the tree that a look found, or of RSS where PSS may not be read.

Not covered: other systems (`ProcessError`), memory of the kernel, GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from greenllm.core import GreenllmError

PROC = Path("/proc")
LISTENING = "0A"


class ProcessError(GreenllmError):
    """A process cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of /proc/PID/stat, as far as it matters; times in seconds."""

    pid: int
    parent: int
    started_ticks: int
    own_s: float
    waited_s: float

    @property
    def key(self) -> tuple[int, int]:
        """Tells a process from a later one with its number."""
        return self.pid, self.started_ticks


def parse_stat(line: str, ticks_per_s: int) -> Stat:
    """Read a stat line; the name in it may hold spaces and brackets."""
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    times_s = [int(fields[i]) / ticks_per_s for i in (11, 12, 13, 14)]
    return Stat(
        pid=int(head.partition(" ")[0]),
        parent=int(fields[1]),
        started_ticks=int(fields[19]),
        own_s=times_s[0] + times_s[1],
        waited_s=times_s[2] + times_s[3],
    )


def tree_of(root: int, stats: Iterable[Stat]) -> list[Stat]:
    """A process and all that descend from it."""
    children: dict[int, list[Stat]] = {}
    found: list[Stat] = []
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == root:
            found.append(stat)
    for stat in found:  # grows while it is read
        found += children.get(stat.pid, ())
    return found


@dataclass(slots=True)
class TreeClock:
    """Adds up the CPU time of a tree whose processes come and go."""

    root: int
    known: dict[tuple[int, int], Stat] = field(default_factory=dict)
    lost_s: float = 0.0

    def look(self, stats: Iterable[Stat]) -> float:
        """CPU seconds of all that ever was in the tree, from the stats of every process."""
        by_key = {stat.key: stat for stat in stats}
        orphans = [by_key[key] for key in self.known if key in by_key]
        tree = {stat.key: stat for stat in tree_of(self.root, by_key.values())}
        for orphan in orphans:
            if orphan.key not in tree:
                tree |= {stat.key: stat for stat in tree_of(orphan.pid, by_key.values())}
        self.lost_s += lost_seconds(self.known, tree)
        self.known = tree
        return self.lost_s + sum(stat.own_s + stat.waited_s for stat in tree.values())


def lost_seconds(
    before: Mapping[tuple[int, int], Stat], now: Mapping[tuple[int, int], Stat]
) -> float:
    """CPU time of what ended without anybody in the tree to wait for it."""
    alive = {pid for pid, _ in now}
    were = {pid for pid, _ in before}
    ended = [stat for key, stat in before.items() if key not in now]
    unwaited = [stat for stat in ended if stat.parent not in alive and stat.parent not in were]
    return sum(stat.own_s + stat.waited_s for stat in unwaited)


def all_stats() -> list[Stat]:
    """Stats of every process that can be seen.

    Raises:
        ProcessError: this system has no /proc.
    """
    if not (PROC / "self" / "stat").exists():
        raise ProcessError("processes can be watched on Linux only: there is no /proc")
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for folder in os.scandir(PROC):
        if folder.name.isdigit():
            try:
                found.append(parse_stat((PROC / folder.name / "stat").read_text(), ticks))
            except (OSError, ValueError, IndexError):
                continue  # it has just ended
    return found


def memory_of(pids: Iterable[int]) -> tuple[int, str]:
    """Bytes of some processes, and which bytes: `pss`, or `rss` where one of them hides its PSS."""
    pids = list(pids)
    shares = [_kib(pid, "smaps_rollup", "Pss:") for pid in pids if (PROC / str(pid)).exists()]
    if shares and None not in shares:
        return 1024 * sum(kib or 0 for kib in shares), "pss"
    return 1024 * sum(_kib(pid, "status", "VmRSS:") or 0 for pid in pids), "rss"


def _kib(pid: int, name: str, heading: str) -> int | None:
    try:
        text = (PROC / str(pid) / name).read_text()
    except OSError:
        return None if name == "smaps_rollup" and (PROC / str(pid)).exists() else 0
    lines = (line.split() for line in text.splitlines() if line.startswith(heading))
    return next((int(words[1]) for words in lines), 0)


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine, where it can be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return None
    for folder in sorted(PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        if inodes & set(_handles(folder)):
            return int(folder.name)
    return None


def _handles(folder: Path) -> Iterator[str]:
    """What a process has open, as far as it may be seen; handles come and go meanwhile."""
    try:
        names = os.listdir(folder / "fd")
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            yield os.readlink(folder / "fd" / name)


def _listening_inodes(port: int) -> list[str]:
    found = []
    for name in ("tcp", "tcp6"):
        try:
            rows = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for words in (row.split() for row in rows):
            if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                found.append(words[9])
    return found
