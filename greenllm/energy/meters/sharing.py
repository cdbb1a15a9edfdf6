"""One machine's hardware metered by several servers on it, each joule by one of them.

A roster (see `roster`) says who was there from when to when. The idle floor of every moment belongs
in equal parts to those who were there; what is above it belongs to whoever used the processor, by
CPU time. So the servers' readings of the same moments together never exceed what the hardware used,
and what other programs used is on none of them. Where the meter does not know the floor, it is the
lowest power that anybody on the roster has seen.
A server that was alone since the last reading has the whole machine, other programs included, as
without a roster: the account tells them apart.

Not covered: windows that overlap without being the same, whose power differs (each server takes
the mean of its own); GPUs, of which each server must have its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from greenllm.energy.meters.protocol import CpuSeconds, Meter, Reading, cpu_between
from greenllm.energy.meters.roster import Roster

_SHORTEST_FLOOR_WINDOW_S = 0.2
_ALONE = 1 - 1e-6


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
        self._cpu: CpuSeconds | None = CpuSeconds()
        self._is_alone = False
        self._gaps: frozenset[str] = frozenset()

    @property
    def idle_w(self) -> Mapping[str, float] | None:
        """Of the whole machine; where the meter does not know it, the lowest power seen by then.

        A server that is alone learns it by itself.
        """
        if self._whole.idle_w is not None or self._is_alone:
            return self._whole.idle_w
        found = {domain: self._roster.lowest_w(domain) for domain in self._last.joules}
        return found if all(found.values()) else None

    def read(self) -> Reading:
        """What was this server's since the meter was made."""
        now = self._whole.read()
        self._gaps |= now.gaps
        if now.joules != self._last.joules:
            self._share(now, self._roster.seconds()[1])  # else no counter has ticked
        cpu, gaps, self._gaps = self._cpu, self._gaps, frozenset()
        return replace(
            now,
            joules={domain: self._joules.get(domain, 0.0) for domain in now.joules},
            own_cpu_s=None if cpu is None else cpu.own_s,
            machine_cpu_s=None if cpu is None else cpu.machine_s,
            train_cpu_s=0.0 if cpu is None else cpu.train_s,
            floor_s=self._floor_s,
            gaps=gaps,
        )

    def _share(self, now: Reading, floor_s: float) -> None:
        duration_s = max(0.0, now.at_s - self._last.at_s)
        portion = min(1.0, (floor_s - self._floor_s) / duration_s) if duration_s > 0 else 0.0
        self._is_alone = portion >= _ALONE
        cpu = cpu_between(self._last, now)
        above = 1.0 if self._is_alone else portion if cpu is None else _part_used(cpu)
        for domain, value in now.joules.items():
            energy_j = max(0.0, value - self._last.joules.get(domain, value))
            floor_j = min(energy_j, self._floor_w(domain, energy_j, duration_s) * duration_s)
            mine_j = floor_j * portion + (energy_j - floor_j) * above
            self._joules[domain] = self._joules.get(domain, 0.0) + mine_j
        self._last, self._floor_s = now, floor_s
        known = self._cpu or CpuSeconds()
        self._cpu = None if cpu is None else _plus(known, cpu, alone=self._is_alone)

    def _floor_w(self, domain: str, energy_j: float, duration_s: float) -> float:
        if self._whole.idle_w is not None:
            return self._whole.idle_w.get(domain, 0.0)
        is_told = duration_s >= _SHORTEST_FLOOR_WINDOW_S and domain not in self._gaps
        return self._roster.lowest_w(domain, energy_j / duration_s if is_told else None)


def _part_used(cpu: CpuSeconds) -> float:
    """The part of the machine's CPU time that is the server's and its training's."""
    return min(1.0, (cpu.own_s + cpu.train_s) / cpu.machine_s) if cpu.machine_s > 0 else 0.0


def _plus(known: CpuSeconds, more: CpuSeconds, *, alone: bool) -> CpuSeconds:
    """With a window more; of a shared machine only what is the server's."""
    machine_s = more.machine_s if alone else more.own_s + more.train_s
    return CpuSeconds(
        known.own_s + more.own_s, known.train_s + more.train_s, known.machine_s + machine_s
    )
