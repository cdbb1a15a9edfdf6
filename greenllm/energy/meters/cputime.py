"""CPU seconds of this process tree and of the whole machine, from the operating system.

The process clock is exact; the machine's counts in ticks (10 ms on Linux), so the time of other
processes is taken as the largest difference seen so far: it never decreases and is off by a tick
or so in all, not in every window. A machine's time that its processors cannot have used in so short
a time is not believed (see `track`).

Not covered: the part of a machine that a process may use (see `limits`); children that were born
and died between two looks, but in a tree, where the time of those that have been waited for is
their parents'.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from greenllm.energy.meters.track import CounterTrack

_LOOK_FOR_CHILDREN_EVERY_S = 1.0
_LOOK_AT_TREE_EVERY_S = 0.05
_BUSY_FIELDS = (0, 1, 2, 5, 6)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Cumulative CPU seconds since the clock was made; `machine_s` holds the others."""

    own_s: float
    machine_s: float
    train_s: float = 0.0


class _Tree:
    """CPU seconds of processes that come and go, since each was first looked at.

    A process that is missing in two looks is forgotten, for its number may be given out again; in
    one it may be missing because the list was read while it changed.
    """

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._seen: dict[int, float] = {}
        self._missing: dict[int, float] = {}

    def look(self, used_s: Mapping[int, float]) -> None:
        """Add what each process has used since the last look; it never decreases."""
        before = self._missing | self._seen
        self._missing = {pid: s for pid, s in self._seen.items() if pid not in used_s}
        self._seen = {}
        for pid, now_s in used_s.items():
            before_s = before.get(pid, 0.0)
            self._seen[pid] = max(now_s, before_s)
            self.sum_s += max(0.0, now_s - before_s)


class _Whole:
    """CPU seconds of all of a tree together, ended processes included; they never decrease.

    A process that ends while the tree is read is missing in that look only. One that leaves the
    tree is missing from then on, and what it has used stays.
    """

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._left_s = 0.0
        self._is_short = False

    def look(self, used_s: float) -> None:
        """Take what the processes of the tree have used by now."""
        found_s = used_s + self._left_s
        if found_s >= self.sum_s:
            self.sum_s, self._is_short = found_s, False
        elif self._is_short:
            self._left_s, self._is_short = self.sum_s - used_s, False
        else:
            self._is_short = True


class CpuClock:
    """Reads CPU time; `proc` is the root of procfs.

    With `tree_of`, the own time is that of another process and everything below it, by ticks.
    `training` are children that train: their time, and that of all below them, is told apart from
    the own; any thread may add to it, as soon as such a child is there.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        own_s: Callable[[], float] = time.process_time,
        tree_of: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        num_cpus: int | None = None,
    ) -> None:
        self._proc = proc
        self._num_cpus = num_cpus or os.cpu_count() or 1
        self._own_s = own_s if tree_of is None else lambda: 0.0
        self._tree_of = tree_of
        self._look_every_s = (
            _LOOK_FOR_CHILDREN_EVERY_S if tree_of is None else _LOOK_AT_TREE_EVERY_S
        )
        self._clock = clock
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self.training: set[int] = set()
        self._children = _Tree()
        self._tree = _Whole()
        self._trainers = _Tree()
        self._looked_s = clock()
        self._others_s = 0.0
        self._has_children = tree_of is not None
        self._busy: CounterTrack | None = None
        self._read_children()  # what they used before now is not ours to count
        self._machine()
        self._started_s = self._own()

    def read(self) -> CpuTimes:
        """Read both clocks."""
        now_s = self._clock()
        is_due = now_s - self._looked_s >= self._look_every_s
        if is_due:
            self._looked_s = now_s
            self._read_children()
        self._read_trainers()
        own_s = self._own() - self._started_s
        train_s = self._trainers.sum_s
        machine_s = self._machine()
        # Until children are looked at again, what they use looks like somebody else's.
        if is_due or not self._has_children:
            self._others_s = max(self._others_s, machine_s - own_s - train_s)
        return CpuTimes(own_s, own_s + train_s + self._others_s, train_s)

    def _own(self) -> float:
        return self._own_s() + self._children.sum_s + self._tree.sum_s

    def _machine(self) -> float:
        """Busy seconds of all processors since the first look; without procfs they stand still."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            with (self._proc / "stat").open("rb") as stream:
                fields = stream.readline().split()[1:]
            used_s, now_s = sum(int(fields[i]) for i in _BUSY_FIELDS) * self._tick_s, self._clock()
            if self._busy is None:
                self._busy = CounterTrack(
                    used_s, now_s, largest_w=self._num_cpus, period_s=self._tick_s
                )
            self._busy.see(used_s, now_s)
        return 0.0 if self._busy is None else self._busy.sum_j

    def _read_children(self) -> None:
        """Add what each descendant has used since the last look.

        In a tree parents are read before their children, so that nothing is counted twice.
        """
        if self._tree_of is not None:
            pids = [self._tree_of, *self._descendants(self._tree_of)]
            self._tree.look(sum(self._used_s(pid, with_ended=True) for pid in pids))
            return
        pids = self._descendants(os.getpid())
        self._has_children = bool(pids)
        self._children.look({pid: self._used_s(pid) for pid in pids})

    def _read_trainers(self) -> None:
        trainers = tuple(self.training)
        pids = [pid for trainer in trainers for pid in (trainer, *self._descendants(trainer))]
        self._trainers.look({pid: self._used_s(pid) for pid in pids})

    def _descendants(self, pid: int) -> list[int]:
        """Processes below one, but for those that train."""
        found: list[int] = []
        folder = self._proc / str(pid) / "task"
        try:
            tasks = os.listdir(folder)
        except OSError:  # the process has ended
            return found
        for task in tasks:
            try:
                pids = [int(word) for word in (folder / task / "children").read_text().split()]
            except (OSError, ValueError):
                continue
            for child in pids:
                if child not in self.training:
                    found += [child, *self._descendants(child)]
        return found

    def _used_s(self, pid: int, *, with_ended: bool = False) -> float:
        """User and system time; with that of its children that have ended and been waited for."""
        last = 15 if with_ended else 13
        try:
            fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            return sum(int(field) for field in fields[11:last]) * self._tick_s
        except (OSError, IndexError, ValueError):
            return 0.0
