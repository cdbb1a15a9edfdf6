"""Joules of one step, from a meter read around many of them.

Contract: active joules are this process's part of what is above idle; idle is what the meter knows,
or has counted in a second of rest before. Steps go on until they have lasted long enough for
the meter's counters. What no meter can say is None.

Not covered: the joules of a part by itself, which are shorter than any counter's period: those of
the step are shared out by time (`profile`), as if every part drew the same power.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from greenllm.energy.account.idle import IdlePower
from greenllm.energy.account.window import take_apart
from greenllm.energy.meters.protocol import Meter, SensorError

_REST_S = 1.0
_LEAST_S = 1.0
# So many periods of the slowest counter, so that a reading that is one late is 5 % off at most.
_PERIODS = 20


@dataclass(frozen=True, slots=True)
class StepEnergy:
    """Joules of one step, the mean of `steps`; None where unknown, and `reason` says why."""

    method: str
    measured: bool
    uncertainty: float
    steps: int = 0
    active_j: float | None = None
    idle_j: float | None = None
    foreign_j: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to rest and to measure at least, in seconds of `clock`; `wait` rests."""

    rest_s: float = _REST_S
    least_s: float = _LEAST_S
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = time.sleep


def measure_energy(
    meter: Meter, run: Callable[[], object], rounds: int, patience: Patience | None = None
) -> StepEnergy:
    """Run steps between two readings: `rounds` of them, and more where that is too short."""
    about = (meter.method, meter.measured, meter.uncertainty)
    try:
        return _measure(meter, run, rounds, patience or Patience())
    except SensorError as error:
        return StepEnergy(*about, reason=str(error))


def _measure(
    meter: Meter, run: Callable[[], object], rounds: int, patience: Patience
) -> StepEnergy:
    about = (meter.method, meter.measured, meter.uncertainty)
    if not meter.read().joules:
        return StepEnergy(*about, reason="no meter works here")
    idle = IdlePower(meter.idle_w)
    if meter.idle_w is None:
        _learn(idle, meter, patience)
    least_s = max(patience.least_s, _PERIODS * meter.period_s)
    before, began_s, steps = meter.read(), patience.clock(), 0
    while steps < rounds or patience.clock() - began_s < least_s:
        run()
        steps += 1
    after = meter.read()
    if hole := after.hole_since(before):
        return StepEnergy(*about, reason=hole)
    window = take_apart(before, after, idle.watts)
    return StepEnergy(
        *about,
        steps=steps,
        active_j=sum(window.active_j.values()) / steps,
        idle_j=sum(window.idle_j.values()) / steps,
        foreign_j=window.unattributed_j / steps,
    )


def _learn(idle: IdlePower, meter: Meter, patience: Patience) -> None:
    before = meter.read()
    patience.wait(patience.rest_s)
    idle.learn_between(before, meter.read())
