"""Meters of the simulated machine: counters that tick, a power reading that lags, and glitches.

Contract: see `greenllm.energy.meters.protocol.Meter`. A counter shows the joules of its last tick;
ticks have a phase that nobody knows. A meter that stamps says of which moment its joules are, as
somebody finds out who looks every `LOOK_S`. The counted joules are true but for what is said here,
so `uncertainty` is 0: what is left of an error is the account's.

Not covered: raw counters that wrap (`tests/unit/energy/meters`), several domains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evals.studies.truth.machine import Machine
from greenllm.energy.meters.protocol import Reading, SensorError

DOMAIN = "gpu"
LOOK_S = 0.005
_RESOLUTION_J = 0.001
_POLL_S = 0.1
_AVERAGED_S = 1.0


@dataclass(frozen=True, slots=True)
class Glitch:
    """A fault of a sensor in [from_s, to_s).

    `fails`: it cannot be read. `stands`: it shows what it showed before. `jumps`: from then on it
    shows so many `joules` that never were; the first reading after it says that it is in doubt.
    """

    kind: Literal["fails", "stands", "jumps"]
    from_s: float
    to_s: float
    joules: float = 0.0

    def holds_at(self, at_s: float) -> bool:
        """Whether it lasts at that moment."""
        return self.from_s <= at_s < self.to_s


def random_glitches(source: random.Random, from_s: float, to_s: float, count: int) -> list[Glitch]:
    """So many of each kind: failures and stand-stills of up to 4 s, jumps of up to 300 J."""
    found: list[Glitch] = []
    for _ in range(count):
        for kind in ("fails", "stands"):
            at_s = source.uniform(from_s, to_s)
            found.append(Glitch(kind, at_s, at_s + source.uniform(0.2, 4.0)))
        at_s = source.uniform(from_s, to_s)
        found.append(Glitch("jumps", at_s, at_s, source.uniform(10.0, 300.0)))
    return found


class SimulatedMeter:
    """What all of them share: glitches, and the reading that is made of joules and a moment."""

    method = "measured:simulated"
    measured = True
    uncertainty = 0.0
    idle_w: Mapping[str, float] | None = None

    def __init__(
        self,
        machine: Machine,
        *,
        period_s: float,
        lag_s: float = 0.0,
        phase_s: float = 0.0,
        stamps: bool = True,
        glitches: Sequence[Glitch] = (),
    ) -> None:
        self.period_s = period_s
        self.lag_s = lag_s
        self._machine = machine
        self._phase_s = phase_s
        self._stamps = stamps and period_s > LOOK_S
        self._glitches = glitches
        self._read_s = machine.now_s
        self._first_j: float | None = None
        self._last_j = 0.0

    @property
    def told_j(self) -> float:
        """What has been counted from the first reading to the last."""
        return self._last_j - (self._first_j or 0.0)

    def read(self) -> Reading:
        """Look at the sensor now."""
        now_s = self._machine.now_s
        if any(glitch.kind == "fails" and glitch.holds_at(now_s) for glitch in self._glitches):
            raise SensorError("simulated: the sensor fails")
        stands = [g.from_s for g in self._glitches if g.kind == "stands" and g.holds_at(now_s)]
        tick_s = self._last_tick_s(min([now_s, *stands]))
        jumps = [g for g in self._glitches if g.kind == "jumps" and g.from_s <= now_s]
        new = [jump for jump in jumps if jump.from_s > self._read_s]
        self._read_s = now_s
        joules = self._joules_at_tick(tick_s) + sum(jump.joules for jump in jumps)
        self._last_j = math.floor(joules / _RESOLUTION_J) * _RESOLUTION_J
        if self._first_j is None:
            self._first_j = self._last_j
        return Reading(
            now_s,
            {DOMAIN: self._last_j},
            as_of_s={DOMAIN: self._seen_s(tick_s, now_s) - self.lag_s / 2} if self._stamps else {},
            gaps=frozenset({DOMAIN} if new else ()),
        )

    def _last_tick_s(self, at_s: float) -> float:
        ticks = math.floor((at_s - self._phase_s) / self.period_s)
        return ticks * self.period_s + self._phase_s

    def _seen_s(self, tick_s: float, now_s: float) -> float:
        """When somebody who looks every `LOOK_S` sees a tick; a reading is a look too."""
        return min(now_s, math.ceil(tick_s / LOOK_S) * LOOK_S)

    def _joules_at_tick(self, tick_s: float) -> float:
        return self._machine.joules_at(tick_s)


class LaggingMeter(SimulatedMeter):
    """Adds up a power reading that is the average of the last second, polled at 10 Hz."""

    def __init__(
        self,
        machine: Machine,
        *,
        phase_s: float = 0.0,
        stamps: bool = True,
        glitches: Sequence[Glitch] = (),
    ) -> None:
        super().__init__(
            machine,
            period_s=_POLL_S,
            lag_s=_AVERAGED_S,
            phase_s=phase_s,
            stamps=stamps,
            glitches=glitches,
        )
        self._sum_j = 0.0
        self._polled_s = self._last_tick_s(machine.now_s)

    def _joules_at_tick(self, tick_s: float) -> float:
        while self._polled_s + _POLL_S / 2 < tick_s:
            self._polled_s += _POLL_S
            now_j = self._machine.joules_at(self._polled_s)
            shown_w = (now_j - self._machine.joules_at(self._polled_s - _AVERAGED_S)) / _AVERAGED_S
            self._sum_j += shown_w * _POLL_S
        return self._sum_j


def make_meter(
    kind: str, machine: Machine, source: random.Random, *, stamps: bool, glitches: Sequence[Glitch]
) -> SimulatedMeter:
    """A meter of one of the `KINDS`."""
    period_s = KINDS[kind]
    phase_s = source.uniform(0.0, period_s or _POLL_S)
    if period_s is None:
        return LaggingMeter(machine, phase_s=phase_s, stamps=stamps, glitches=glitches)
    return SimulatedMeter(
        machine, period_s=period_s, phase_s=phase_s, stamps=stamps, glitches=glitches
    )


# Period of the counter; None is a power reading.
KINDS: Mapping[str, float | None] = {"1ms": 0.001, "100ms": 0.1, "1s": 1.0, "power": None}
