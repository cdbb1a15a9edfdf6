"""One machine's hardware metered by several servers on it, each joule by one of them.

A roster, a file that the servers of a machine share, says who was there from when to when. The idle
floor of every moment belongs in equal parts to those who were there; what is above it belongs to
whoever used the processor, by CPU time. So the servers' readings of the same moments together never
exceed what the hardware used, and what other programs used is on none of them. Where the meter does
not know the floor, it is the lowest power that anybody on the roster has seen.

Contract: `Roster` is safe between processes (an exclusive lock per change) and survives members
that die without leaving: the others strike them off when they notice, within `_LOOK_EVERY_S`.
Moments are of CLOCK_MONOTONIC, which all processes of a machine share.

Not covered: windows that overlap without being the same, whose power differs (each server takes
the mean of its own); a dead member's part of the floor until it is struck off (nobody pays it);
containers that do not see each other's processes; training beside a server; GPUs, of which each
server must have its own.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from greenllm.energy.meters.protocol import Meter, Reading, SensorError

_LOOK_EVERY_S = 1.0
_SHORTEST_FLOOR_WINDOW_S = 0.2
_ENDED = ("Z", "X")
_WORTH_TELLING = 0.01
_FIELDS, _END = 4, "."


class Roster:
    """Who shares a machine: one line per coming (`+`) and going (`-`), with the moment.

    Lines with a domain's name instead of a sign tell a power in watts, the lowest seen by then.
    When somebody has removed the file, its members begin another one.
    """

    def __init__(
        self,
        path: Path,
        *,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_alive: Callable[[str], bool] | None = None,
    ) -> None:
        """Join; the file's folder must exist."""
        self._path = path
        self._clock = clock
        self._is_alive = is_alive or _runs
        self._name = _identity(os.getpid() if pid is None else pid)
        self._looked_s = clock()
        self._seconds = self._kept_s = 0.0
        self._has_left = False
        self._note("+", self._name)

    def seconds(self) -> tuple[float, float]:
        """The moment, and for how many seconds until then the floor was this member's."""
        if self._clock() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = self._clock()
            self._strike_off_the_dead()
        events = self._events_or_rejoin()
        now_s = self._clock()
        found_s = self._kept_s + share_of(self._name, events, now_s)
        self._seconds = max(self._seconds, found_s)
        return now_s, self._seconds

    def lowest_w(self, domain: str, now_w: float | None = None) -> float:
        """The lowest power that anybody has seen, `now_w` included; 0 where nobody has."""
        seen = [float(w) for _, sign, w in self._events_or_rejoin() if sign == domain]
        lowest_w = min(seen, default=None)
        if now_w is not None and (lowest_w is None or now_w < (1 - _WORTH_TELLING) * lowest_w):
            self._note(domain, f"{now_w:.6f}")
            return now_w
        return lowest_w or 0.0

    def leave(self) -> None:
        """Share no longer; the last takes the file along."""
        self._has_left = True
        self._note("-", self._name)

    def _events_or_rejoin(self) -> list[tuple[float, str, str]]:
        """The file's lines; whoever finds itself not in them, or no file, comes again."""
        try:
            events = self._events()
        except FileNotFoundError:
            events = []
        if self._has_left or self._name in _present(events):
            return events
        self._note("+", self._name)
        events = self._events()
        self._kept_s = self._seconds - share_of(self._name, events, self._clock())
        return events

    def _events(self) -> list[tuple[float, str, str]]:
        """Whole lines only: a full disk or a kill may leave half of one."""
        lines = [line.split() for line in self._path.read_text(encoding="ascii").splitlines()]
        whole = (line for line in lines if len(line) == _FIELDS and line[-1] == _END)
        return [(float(at), sign, name) for at, sign, name, _ in whole]

    def _note(self, sign: str, name: str) -> None:
        while True:
            with self._path.open("a", encoding="ascii") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                if os.fstat(stream.fileno()).st_nlink == 0:
                    continue  # the last member has just taken the file along
                stream.write(f"\n{self._clock():.6f} {sign} {name} {_END}")
                stream.flush()
                if not _present(self._events()):
                    self._path.unlink()
                return

    def _strike_off_the_dead(self) -> None:
        try:
            present = _present(self._events())
        except FileNotFoundError:
            return  # whoever reads next begins another one
        for name in present:
            if not self._is_alive(name):
                self._note("-", name)


def _present(events: list[tuple[float, str, str]]) -> set[str]:
    present: set[str] = set()
    for _, sign, name in events:
        if sign == "+":
            present.add(name)
        elif sign == "-":
            present.discard(name)
    return present


def share_of(name: str, events: list[tuple[float, str, str]], now_s: float) -> float:
    """Seconds of the floor that are `name`'s: the integral of 1 / (members) while it was there."""
    present: set[str] = set()
    since_s, total_s = 0.0, 0.0
    for at_s, sign, who in [*sorted(events, key=lambda event: event[0]), (now_s, "", "")]:
        if name in present:
            total_s += max(0.0, at_s - since_s) / len(present)
        since_s = at_s
        if sign == "+":
            present.add(who)
        elif sign == "-":
            present.discard(who)
    return total_s


def _identity(pid: int) -> str:
    """A process, told from a later one of the same number by when it began."""
    return f"{pid}:{_began(pid)}"


def _began(pid: int) -> str:
    """When a process began; one that has ended and is not waited for yet is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] in _ENDED else fields[19]
    except (OSError, IndexError):
        return "gone"


def _runs(name: str) -> bool:
    pid, _, began = name.partition(":")
    return _began(int(pid)) == began


class SharedMeter:
    """A meter of the whole machine, cut down to what is one server's."""

    def __init__(self, whole: Meter, roster: Roster) -> None:
        self.method = whole.method
        self.measured = whole.measured
        self.period_s = whole.period_s
        self.lag_s = whole.lag_s
        self.uncertainty = whole.uncertainty
        self._whole = whole
        self._roster = roster
        self._joules: dict[str, float] = {}
        self._last = whole.read()
        self._floor_s = roster.seconds()[1]
        self._own_cpu_s = 0.0
        self._gaps: frozenset[str] = frozenset()

    @property
    def idle_w(self) -> Mapping[str, float] | None:
        """Of the whole machine; where the meter does not know it, the lowest power seen by then."""
        if self._whole.idle_w is not None:
            return self._whole.idle_w
        found = {domain: self._roster.lowest_w(domain) for domain in self._last.joules}
        return found if all(found.values()) else None

    def read(self) -> Reading:
        """What was this server's since the meter was made."""
        now = self._whole.read()
        self._gaps |= now.gaps
        try:
            reading = self._cut_down(now, self._roster.seconds()[1])
        except OSError as error:
            raise SensorError(f"the roster of this machine's servers: {error}") from error
        self._gaps = frozenset()
        return reading

    def _cut_down(self, now: Reading, floor_s: float) -> Reading:
        if now.joules != self._last.joules:
            self._share(now, floor_s)  # else the counters have not ticked: nothing to share yet
        cpu_s = None if self._used(now)[1] is None else self._own_cpu_s
        return replace(
            now,
            joules={domain: self._joules.get(domain, 0.0) for domain in now.joules},
            own_cpu_s=cpu_s,
            machine_cpu_s=cpu_s,
            floor_s=self._floor_s,
            gaps=self._gaps,
        )

    def _share(self, now: Reading, floor_s: float) -> None:
        duration_s = max(0.0, now.at_s - self._last.at_s)
        portion = min(1.0, (floor_s - self._floor_s) / duration_s) if duration_s > 0 else 0.0
        own_cpu_s, used = self._used(now)
        for domain, value in now.joules.items():
            energy_j = max(0.0, value - self._last.joules.get(domain, 0.0))
            floor_j = min(energy_j, self._floor_w(domain, energy_j, duration_s) * duration_s)
            mine_j = floor_j * portion + (energy_j - floor_j) * (portion if used is None else used)
            self._joules[domain] = self._joules.get(domain, 0.0) + mine_j
        self._last, self._floor_s = now, floor_s
        self._own_cpu_s += own_cpu_s

    def _used(self, now: Reading) -> tuple[float, float | None]:
        """Own CPU seconds since the last reading, and their part of the machine's, if told."""
        before = self._last
        if None in (before.own_cpu_s, now.own_cpu_s, before.machine_cpu_s, now.machine_cpu_s):
            return 0.0, None
        own_s = (now.own_cpu_s or 0.0) - (before.own_cpu_s or 0.0)
        machine_s = (now.machine_cpu_s or 0.0) - (before.machine_cpu_s or 0.0)
        return own_s, min(1.0, own_s / machine_s) if machine_s > 0 else 0.0

    def _floor_w(self, domain: str, energy_j: float, duration_s: float) -> float:
        if self._whole.idle_w is not None:
            return self._whole.idle_w.get(domain, 0.0)
        is_told = duration_s >= _SHORTEST_FLOOR_WINDOW_S and domain not in self._gaps
        return self._roster.lowest_w(domain, energy_j / duration_s if is_told else None)
