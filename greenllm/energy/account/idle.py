"""Idle power: what a machine draws with nothing running, known beforehand or learnt.

A window without work of this server is not a window without work: other processes run, too. Their
busy CPU seconds explain a part of its power; what is left is the floor. The floor is a property of
the machine, so that it is the low quantile of many windows, not their mean.

Not covered: a machine that is never idle for a moment, whose floor is over-estimated by the part of
the power that does not move with its CPU time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, stdev

from greenllm.energy.meters.protocol import Reading

_SHORTEST_S = 0.4
_REMEMBERED = 60
_QUANTILE = 0.25
_SPREAD = 0.05
_FIRST_ERROR = 0.1


class IdlePower:
    """Watts per domain, by windows without work; those that are known are not learnt."""

    def __init__(self, known_w: Mapping[str, float] | None) -> None:
        self._fixed = False
        self.watts: dict[str, float] = {}
        self._seen: dict[str, deque[tuple[float, float]]] = {}
        self._sums: dict[str, tuple[float, float, float]] = {}
        self.know(known_w)

    def know(self, watts: Mapping[str, float] | None) -> None:
        """Take what the meter knows by now; None is nothing, and then the floor is learnt (again).

        What was learnt of a domain that the meter does not name stays, for it may come back.
        """
        self._fixed = watts is not None
        self.watts |= watts or {}

    def error_w(self, domain: str) -> float:
        """By how many watts a floor that was learnt may be off, one standard deviation.

        The error of a known floor is the meter's, and part of its uncertainty.
        """
        seen = self._seen.get(domain)
        if self._fixed or not seen:
            return 0.0
        if len(seen) == 1:
            return _FIRST_ERROR * seen[0][0]
        return stdev(power_w for power_w, _ in seen) / math.sqrt(len(seen))

    def learn(
        self, duration_s: float, joules: Mapping[str, float], busy_s: float | None = None
    ) -> None:
        """Follow a window without work; short ones are put together until they say something.

        Args:
            duration_s: its length.
            joules: all that each domain counted in it, whoever caused it.
            busy_s: CPU seconds that the whole machine used in it; None where it is not known.
        """
        if self._fixed or duration_s <= 0:
            return
        for domain, energy_j in joules.items():
            sums = self._sums.get(domain, (0.0, 0.0, 0.0))
            new = (duration_s, energy_j, busy_s or 0.0)
            long_s, all_j, all_busy_s = (a + b for a, b in zip(sums, new, strict=True))
            self._sums[domain] = (long_s, all_j, all_busy_s)
            if long_s >= _SHORTEST_S:
                del self._sums[domain]
                seen = self._seen.setdefault(domain, deque(maxlen=_REMEMBERED))
                seen.append((all_j / long_s, all_busy_s / long_s))
                self.watts[domain] = floor_w(seen)

    def learn_between(self, before: Reading, now: Reading) -> None:
        """Learn from two readings without work of this process in between."""
        joules = {d: j - before.joules[d] for d, j in now.joules.items() if d in before.joules}
        self.learn(now.at_s - before.at_s, joules, busy_s(before, now))


def busy_s(before: Reading, now: Reading) -> float | None:
    """CPU seconds of the whole machine between two readings; None where they are not told."""
    if before.machine_cpu_s is None or now.machine_cpu_s is None:
        return None
    return max(0.0, now.machine_cpu_s - before.machine_cpu_s)


def floor_w(seen: deque[tuple[float, float]]) -> float:
    """The floor that windows of (watts, busy CPUs) have in common.

    Watts per busy CPU are the slope of a straight line through them, where they differ enough in
    how busy they were to tell.
    """
    slope_w = _slope(seen)
    rest = sorted(max(0.0, power_w - slope_w * busy) for power_w, busy in seen)
    return rest[int(_QUANTILE * (len(rest) - 1))]


def _slope(seen: deque[tuple[float, float]]) -> float:
    mean_w, mean_busy = fmean(p for p, _ in seen), fmean(b for _, b in seen)
    spread = fmean((busy - mean_busy) ** 2 for _, busy in seen)
    if spread < _SPREAD**2:
        return 0.0
    together = fmean((power_w - mean_w) * (busy - mean_busy) for power_w, busy in seen)
    return max(0.0, together / spread)
