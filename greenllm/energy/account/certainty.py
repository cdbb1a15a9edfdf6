"""How well the joules of a request are known: the half-width of a 90 % interval around them.

Contract: errors are added up as a request's shares are booked, window by window, in joules.

- The sensor is wrong by a factor: its own relative uncertainty of all joules.
- The split between the requests of a window is wrong: by the error with which the fit predicts
  windows, and the more, the more of the window was others'. The errors of a request's windows have
  one cause, the coefficients, so that they add up in full.
- A tick is seen a little late: a part of a window belongs to its neighbour. These errors are
  independent, so that their squares add up.
- The idle power is wrong: what a request pays too little as idle it pays too much as active. Only
  the difference between the time of its windows and the time of its steps matters.
- Strangers used the machine at the same time: how much of the floor is theirs is a convention, and
  their effect on speed and clocks is not seen.

Not covered: errors of the grams, which have intervals of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenllm.energy.account.window import DomainWindow

Z90 = 1.645
# Active joules that strangers may cause through shared caches, clocks and cores, for each joule.
CONTENTION = 0.5
_LEAST_PART = 1e-3


@dataclass(frozen=True, slots=True)
class WindowErrors:
    """What is not known well about one window of a domain.

    Attributes:
        fit: Relative error of a predicted window, one standard deviation.
        tick_s: By how much its two ends may be off, one standard deviation. [s]
        idle_w: By how much the idle power may be off, one standard deviation. [W]
        is_fitted: Whether the fit had seen enough windows to predict this one.
    """

    fit: float = 0.0
    tick_s: float = 0.0
    idle_w: float = 0.0
    is_fitted: bool = True


@dataclass(slots=True)
class ErrorBudget:
    """The errors of one request's joules, in joules, one standard deviation."""

    split_j: float = 0.0
    tick_j2: float = 0.0
    idle_j: float = 0.0
    strangers_j: float = 0.0

    def add(
        self,
        errors: WindowErrors,
        window: DomainWindow,
        *,
        active_j: float,
        idle_j: float,
        resident_s: float,
    ) -> None:
        """Add a request's part of a window: its joules, and its share of the time of the steps."""
        share = active_j / window.active_j if window.active_j > 0 else 0.0
        power_w = window.active_j / window.duration_s if window.duration_s > 0 else 0.0
        self.split_j += errors.fit * active_j * (1 - share)
        self.tick_j2 += (errors.tick_s * power_w * share * (1 - share)) ** 2
        self.idle_j += errors.idle_w * (share * window.duration_s - resident_s)
        strangers = window.cpu.others
        own = max(1 - strangers, _LEAST_PART)
        self.strangers_j += idle_j * strangers / own + CONTENTION * active_j * strangers

    def half_width_j(self, total_j: float, sensor: float) -> float:
        """Of the 90 % interval; `sensor` is the meter's relative one."""
        # What strangers cost is a bound, not a deviation.
        spread_j2 = self.split_j**2 + self.tick_j2 + self.idle_j**2
        return math.sqrt((sensor * total_j) ** 2 + Z90**2 * spread_j2 + self.strangers_j**2)
