"""A simulated machine: its time, and the joules that it has really used at each moment.

Contract: time moves only when something is done, computing or resting, and never back. Meters see
the joules of the past; nobody but the machine knows them.
"""

from __future__ import annotations

from bisect import bisect_right

IDLE_W = 70.0
_START_S = 1000.0


class Machine:
    """Draws `idle_w` always, and what is spent on top of it."""

    def __init__(self, idle_w: float = IDLE_W) -> None:
        self.idle_w = idle_w
        self.active_j = 0.0
        self._at_s = [_START_S]
        self._active_j = [0.0]

    @property
    def now_s(self) -> float:
        """The present."""
        return self._at_s[-1]

    def clock(self) -> float:
        """The present, for whoever takes a clock."""
        return self._at_s[-1]

    def spend(self, seconds: float, active_j: float) -> None:
        """Compute: so many joules beyond idle, evenly."""
        self.active_j += active_j
        self._at_s.append(self._at_s[-1] + seconds)
        self._active_j.append(self.active_j)

    def rest(self, seconds: float) -> None:
        """Do nothing."""
        if seconds > 0:
            self.spend(seconds, 0.0)

    def joules_at(self, at_s: float) -> float:
        """All joules from the start to a moment; negative before it, as if it had idled."""
        return self.idle_w * (at_s - _START_S) + self._active_at(at_s)

    def _active_at(self, at_s: float) -> float:
        place = bisect_right(self._at_s, at_s)
        if place == 0:
            return 0.0
        if place == len(self._at_s):
            return self.active_j
        (from_s, to_s), (low_j, high_j) = (
            (found[place - 1], found[place]) for found in (self._at_s, self._active_j)
        )
        return low_j + (high_j - low_j) * (at_s - from_s) / (to_s - from_s)
