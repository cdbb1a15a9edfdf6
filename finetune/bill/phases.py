"""The joules of a run by phase, from the meter's cumulative counters.

Contract: phases follow each other without a gap, and what they are given adds up to what the meter
counted: active (this run's share of everything above idle), idle (what the machine draws anyway),
foreign (other processes). A sensor that fails, or counts only a part, makes every figure unknown
from then on: a sum with a hole in it is not a sum. Not covered: attribution to examples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from greenllm.energy.account.idle import IdlePower
from greenllm.energy.account.window import take_apart
from greenllm.energy.meters.protocol import Meter, Reading, SensorError

RunPhase = Literal[
    "data", "loading", "compressing", "trials", "waiting", "training", "teacher", "evaluation",
    "saving", "lost", "compare",
]  # fmt: skip
PHASES: tuple[RunPhase, ...] = get_args(RunPhase)
# What every token that is learnt from costs.
LEARNING: tuple[RunPhase, ...] = ("training", "teacher")
# What a machine draws while a run waits, or what another run would have cost, is not its bill.
NOT_BILLED: frozenset[RunPhase] = frozenset({"waiting", "compare"})
BILLED: tuple[RunPhase, ...] = tuple(phase for phase in PHASES if phase not in NOT_BILLED)


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """Joules and seconds of one phase; `domains_j` splits active and idle together."""

    active_j: float = 0.0
    idle_j: float = 0.0
    foreign_j: float = 0.0
    duration_s: float = 0.0
    domains_j: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_j(self) -> float:
        """What the run is billed for."""
        return self.active_j + self.idle_j

    def minus(self, other: PhaseEnergy) -> PhaseEnergy:
        """What is more than another."""
        return self.plus(other, -1.0)

    def plus(self, other: PhaseEnergy, sign: float = 1.0) -> PhaseEnergy:
        """Both together."""
        names = {**self.domains_j, **other.domains_j}
        return PhaseEnergy(
            self.active_j + sign * other.active_j,
            self.idle_j + sign * other.idle_j,
            self.foreign_j + sign * other.foreign_j,
            self.duration_s + sign * other.duration_s,
            {n: self.domains_j.get(n, 0.0) + sign * other.domains_j.get(n, 0.0) for n in names},
        )


class PhaseAccount:
    """Books what the meter counts to the phase that is going on.

    `metering_s` is what reading and booking took so far.
    """

    def __init__(self, meter: Meter, *, bills_idle: bool = True) -> None:
        self.meter = meter
        self._bills_idle = bills_idle
        self._idle = IdlePower(meter.idle_w)
        self._phase: RunPhase = "loading"
        self._spent: dict[RunPhase, PhaseEnergy] = {}
        self._last: Reading | None = meter.read()
        self.error: str | None = None
        if hole := self._last.hole_since(self._last):
            self.give_up(hole)
        self.metering_s = 0.0

    @property
    def phase(self) -> RunPhase:
        """What is going on."""
        return self._phase

    @contextmanager
    def during(self, phase: RunPhase) -> Iterator[None]:
        """Book to a phase, then to the one before again."""
        before = self._phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(before)

    def begin(self, phase: RunPhase) -> None:
        """Close the books of one phase and open those of another."""
        self.read()
        self._phase = phase

    def read(self) -> None:
        """Book what was counted since the last time."""
        if self._last is None:
            return
        began_s = time.perf_counter()
        try:
            now = self.meter.read()
        except SensorError as error:
            self.give_up(str(error))
            return
        if hole := now.hole_since(self._last):
            self.give_up(hole)
            return
        self._book(self._last, now)
        self._last = now
        self.metering_s += time.perf_counter() - began_s

    def _book(self, before: Reading, now: Reading) -> None:
        window = take_apart(before, now, self._idle.watts)
        idle = window.idle_j if self._bills_idle else dict.fromkeys(window.idle_j, 0.0)
        domains = {name: idle[name] + window.active_j[name] for name in idle}
        spent = PhaseEnergy(
            sum(window.active_j.values()),
            sum(idle.values()),
            window.unattributed_j,
            window.duration_s,
            domains,
        )
        self.add(self._phase, spent)

    def give_up(self, reason: str) -> None:
        """From now on, nothing is known."""
        self._last, self.error = None, self.error or reason

    def add(self, phase: RunPhase, energy: PhaseEnergy) -> None:
        """Book what was counted elsewhere: before a restart, or by another process."""
        self._spent[phase] = self._spent.get(phase, PhaseEnergy()).plus(energy)

    @property
    def is_known(self) -> bool:
        """Whether every joule was counted."""
        return self._last is not None and bool(self._last.joules)

    def spent(self, *phases: RunPhase) -> PhaseEnergy:
        """What phases have cost so far; without names, what the run is billed for."""
        total = PhaseEnergy()
        for phase in phases or BILLED:
            total = total.plus(self._spent.get(phase, PhaseEnergy()))
        return total

    def by_phase(self) -> dict[RunPhase, PhaseEnergy]:
        """Every phase that took place, in order."""
        return {phase: self._spent[phase] for phase in PHASES if phase in self._spent}
