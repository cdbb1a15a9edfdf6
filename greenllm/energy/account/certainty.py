"""How well the joules of a request are known: the half-width of a 90 % interval around them.

Contract: errors are added up as a request's shares are booked, window by window, in joules.

- The sensor is wrong by a factor: its own relative uncertainty of all joules.
- The shares in steps are wrong, as far as times of steps are not what the model of steps says, and
  the more, the more of the window was others'. A part of these errors has one cause in all windows
  and adds up in full; the rest is independent, so that its squares add up.
- The power of steps is wrong, as far as windows are not what power tells. It matters for requests
  that ran in some steps of a window and not in the others.
- A tick is seen a little late: a part of a window belongs to its neighbour. So does what a lagging
  sensor counts too late.
- The idle power is wrong: what a request pays too little as idle it pays too much as active. Only
  the difference between the time of its windows and the time of its steps matters.
- Strangers used the machine at the same time: how much of the floor is theirs is a convention, and
  their effect on speed and clocks is not seen.

How large the parts are was fitted to a simulated machine whose truth is known
(`python -m evals.studies.truth`), on counters of 1 ms, 100 ms and 1 s.
Not covered: errors of the grams, which have intervals of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenllm.energy.account.window import DomainWindow

Z90 = 1.645
_SPLIT_IN_ALL, _SPLIT_IN_ONE = 0.88, 1.5
_POWER = 1.4
_TICK, _EDGE = 0.7, 0.6
# Active joules that strangers may cause through shared caches, clocks and cores, for each joule.
CONTENTION = 0.5
_LEAST_PART = 1e-3


@dataclass(frozen=True, slots=True)
class WindowErrors:
    """What is not known well about one window of a domain, one standard deviation each.

    Attributes:
        steps: Relative error of a step's time by the model of steps.
        power: Relative error of a window's joules by the power of its steps.
        tick_s: By how much the ends of the window may be off. [s]
        idle_w: By how much the idle power may be off. [W]
        busy_s: For how long steps ran in the window. [s]
        is_fitted: Whether power was learnt from enough windows.
    """

    steps: float = 0.0
    power: float = 0.0
    tick_s: float = 0.0
    idle_w: float = 0.0
    busy_s: float = 0.0
    is_fitted: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """A request's part of a window: joules, time shared with others, and time it was there."""

    active_j: float
    idle_j: float
    resident_s: float
    present_s: float


@dataclass(slots=True)
class ErrorBudget:
    """The errors of one request's joules: sums in joules, and sums of squares."""

    split_j: float = 0.0
    idle_j: float = 0.0
    edge_j: float = 0.0
    independent_j2: float = 0.0
    strangers_j: float = 0.0

    def add(self, errors: WindowErrors, window: DomainWindow, part: Part) -> None:
        """Add a request's part of a window."""
        share = part.active_j / window.active_j if window.active_j > 0 else 0.0
        power_w = window.active_j / window.duration_s if window.duration_s > 0 else 0.0
        absence = max(0.0, 1 - part.present_s / errors.busy_s) if errors.busy_s > 0 else 0.0
        split_j = errors.steps * part.active_j * (1 - share)
        edge_j = errors.tick_s * power_w * share
        self.split_j += split_j
        self.idle_j += errors.idle_w * (share * window.duration_s - part.resident_s)
        self.edge_j = max(self.edge_j, edge_j)
        self.independent_j2 += (_SPLIT_IN_ONE * split_j) ** 2
        self.independent_j2 += (_POWER * errors.power * part.active_j * absence**2) ** 2
        self.independent_j2 += (_TICK * edge_j * (1 - share)) ** 2
        strangers = window.cpu.others
        own = max(1 - strangers, _LEAST_PART)
        self.strangers_j += part.idle_j * strangers / own + CONTENTION * part.active_j * strangers

    def half_width_j(self, total_j: float, sensor: float) -> float:
        """Of the 90 % interval; `sensor` is the meter's relative one."""
        sums_j2 = (_SPLIT_IN_ALL * self.split_j) ** 2 + self.idle_j**2 + (_EDGE * self.edge_j) ** 2
        # The sensor's is a half-width already, and what strangers cost is a bound.
        widths_j2 = (sensor * total_j) ** 2 + self.strangers_j**2
        return math.sqrt(widths_j2 + Z90**2 * (sums_j2 + self.independent_j2))
