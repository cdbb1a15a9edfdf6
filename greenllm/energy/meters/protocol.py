"""The meter protocol: cumulative joules per domain, and who used the processor meanwhile.

Contract of `read()`: every domain's joules never decrease; a counter that wrapped or was reset is
made whole before it gets here. A sensor that cannot be read raises `SensorError`, it never returns
an old or a made-up value. A domain that stays unreadable, or stands still, leaves the readings and
is named in `lost`; its joules are unknown from then on. Energy is the difference of two readings.

Domains are `gpu`, `cpu` and `dram`. Not covered: power supplies, fans, disks, networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol


class SensorError(Exception):
    """A sensor vanished, refused or returned nonsense; the message says which and what to do."""


class StillError(SensorError):
    """Counters have said the same for so long that waiting will not help."""

    def __init__(self, names: tuple[str, ...], seconds: float) -> None:
        stands = "stands" if len(names) == 1 else "stand"
        super().__init__(f"{', '.join(names)} {stands} still for {seconds:g} s and more")


@dataclass(frozen=True, slots=True)
class Reading:
    """Cumulative counters at one moment.

    Attributes:
        at_s: When they were read. [s]
        joules: By domain. [J]
        own_cpu_s: CPU time of this process tree; None where it cannot be told, and then all joules
            above idle count as the server's. [s]
        machine_cpu_s: CPU time of everything on the machine. [s]
        train_cpu_s: CPU time of training beside the server, a part of the machine's. [s]
        floor_s: For how many seconds the machine's idle floor was this server's: less than all
            where several servers share a machine (see `sharing`); None is all of them. [s]
        as_of_s: The moment that a domain's joules are of, for counters that tick; a domain that is
            not named here is of `at_s`. [s]
        num_faults: How often counters have said so far what no hardware can do, by domain; a domain
            without faults is not named.
        gaps: Domains whose joules since the last reading are held back, as the counter says what no
            hardware can do, or lack some: it was reset, or nobody looked at a power for long.
        held: Those of the gaps whose joules here are true all the same, as only what comes after
            them is held back.
        lost: Domains that are missing from `joules` although they are metered here, and why.
        paused_s: For how long this process has been stopped or suspended so far. [s]
    """

    at_s: float
    joules: Mapping[str, float] = field(default_factory=dict)
    own_cpu_s: float | None = None
    machine_cpu_s: float | None = None
    train_cpu_s: float = 0.0
    floor_s: float | None = None
    as_of_s: Mapping[str, float] = field(default_factory=dict)
    num_faults: Mapping[str, int] = field(default_factory=dict)
    gaps: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    paused_s: float = 0.0

    @property
    def total_j(self) -> float:
        """Joules of all domains."""
        return sum(self.joules.values())

    def hole_since(self, before: Reading) -> str | None:
        """Why the joules since an earlier reading are not all that was used; None where they are.

        A domain whose joules have not moved yet may still turn out to have lost none.
        """
        for domain, reason in self.lost.items():
            return f"{domain}: {reason}"
        for domain in sorted(self.joules.keys() ^ before.joules.keys()):
            return f"{domain}: it was not counted all the time"
        for domain in sorted(self.gaps):
            if self.joules.get(domain) != before.joules.get(domain):
                return f"{domain}: its counter lost some"
        return None


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU time: the server's, its training's, and the whole machine's."""

    own_s: float = 0.0
    train_s: float = 0.0
    machine_s: float = 0.0


def cpu_between(before: Reading, now: Reading) -> CpuSeconds | None:
    """CPU time between two readings; None where it is not told."""
    if None in (before.own_cpu_s, now.own_cpu_s, before.machine_cpu_s, now.machine_cpu_s):
        return None
    return CpuSeconds(
        (now.own_cpu_s or 0.0) - (before.own_cpu_s or 0.0),
        now.train_cpu_s - before.train_cpu_s,
        (now.machine_cpu_s or 0.0) - (before.machine_cpu_s or 0.0),
    )


class Meter(Protocol):
    """Reads the counters of one machine."""

    @property
    def method(self) -> str:
        """How the joules come about, e.g. `measured:rapl` or `modelled:vcpu-specpower`."""

    @property
    def measured(self) -> bool:
        """Whether every domain is read from a sensor."""

    @property
    def period_s(self) -> float:
        """Time between two updates of the slowest counter."""

    @property
    def lag_s(self) -> float:
        """How long after the work its joules may be counted, beyond the period: an average's."""

    @property
    def uncertainty(self) -> float:
        """Relative half-width of a 90 % interval around the counted joules."""

    @property
    def idle_w(self) -> Mapping[str, float] | None:
        """Power per domain with nothing running, where the method knows it beforehand."""

    def read(self) -> Reading:
        """Read every counter.

        Raises:
            SensorError: a counter cannot be read.
        """


class NullMeter:
    """The last rung of the ladder: knows nothing and says so."""

    method = "unknown"
    measured = False
    period_s = lag_s = 0.0
    uncertainty = 1.0
    idle_w: Mapping[str, float] | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def read(self) -> Reading:
        """Return no domains at all: unknown is not zero."""
        return Reading(self._clock())


class ReplayMeter:
    """Plays recorded readings back: for tests, demonstrations and fault injection.

    A record of None stands for a sensor that fails at that moment. The last reading repeats. With
    a `clock` the records are taken as if read now, one after the other.
    """

    def __init__(
        self,
        records: Iterable[Reading | None],
        *,
        method: str = "replay",
        measured: bool = True,
        period_s: float = 0.0,
        idle_w: Mapping[str, float] | None = None,
        uncertainty: float = 0.05,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.method = method
        self.measured = measured
        self.period_s = period_s
        self.lag_s = 0.0
        self.idle_w = idle_w
        self.uncertainty = uncertainty
        self._clock = clock
        self._records = list(records)
        self._next = 0

    def read(self) -> Reading:
        """Return the next record."""
        if not self._records:
            raise SensorError("replay: no readings recorded")
        record = self._records[min(self._next, len(self._records) - 1)]
        self._next += 1
        if record is None:
            raise SensorError("replay: recorded sensor failure")
        return record if self._clock is None else replace(record, at_s=self._clock())


def load_replay(path: Path, *, clock: Callable[[], float] | None = None) -> ReplayMeter:
    """Read a recording: one JSON object a line with `at_s`, `joules` and optional CPU times.

    Raises:
        SensorError: the file is missing, a line is not such an object, or a meter cannot have said
            it: joules that fall, or are no number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [_record(line) for line in lines if line.strip()]
        _require_rising([record for record in records if record is not None])
        return ReplayMeter(records, measured=False, clock=clock)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SensorError(f"replay: cannot use {path}: {error}") from error


def _record(line: str) -> Reading | None:
    data = json.loads(line)
    if data is None:
        return None
    reading = Reading(**data)
    joules = {str(domain): float(value) for domain, value in reading.joules.items()}
    gaps, held = frozenset(reading.gaps), frozenset(reading.held)
    return replace(reading, at_s=float(reading.at_s), joules=joules, gaps=gaps, held=held)


def _require_rising(records: list[Reading]) -> None:
    highest: dict[str, float] = {}
    for number, record in enumerate(records, 1):
        for domain, joules in record.joules.items():
            if not highest.get(domain, -math.inf) <= joules < math.inf:
                raise ValueError(f"reading {number}: joules of {domain} fall, or are no number")
            highest[domain] = joules
