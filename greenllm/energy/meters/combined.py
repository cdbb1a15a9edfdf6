"""Several meters read together, each on its own: what fails does not take the rest along.

Contract: a part that fails makes the whole reading fail for a while, so that its joules are waited
for. After `_PATIENCE_S`, or at once where its counters stand still, its domains leave the readings
and are named in `lost`; the properties then tell what is left. A part that works again is taken
back; what its counters have counted meanwhile comes with its next joules.

Not covered: meters that count the same joules (the ladder of `choose` takes one a domain).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from greenllm.energy.meters.protocol import Meter, Reading, SensorError, StillError

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_UNKNOWN = "unknown"


@dataclass(slots=True)
class _Part:
    """A meter and how it fares; `reason` says why its domains are lost."""

    meter: Meter
    domains: frozenset[str] = frozenset()
    failing_since_s: float | None = None
    reason: str | None = None

    def read(self, now_s: float) -> Reading | None:
        """A reading, or None while the part is lost.

        Raises:
            SensorError: it fails, and may soon work again.
        """
        try:
            reading = self.meter.read()
        except SensorError as error:
            if self.failing_since_s is None:
                self.failing_since_s = now_s
            can_wait = now_s - self.failing_since_s < _PATIENCE_S
            if can_wait and self.reason is None and not isinstance(error, StillError):
                raise
            self._lose(str(error))
            return None
        if self.reason is not None:
            log.warning("%s counts again", self.meter.method)
        self.failing_since_s = self.reason = None
        self.domains = frozenset(reading.joules) | frozenset(reading.lost)
        return reading

    def _lose(self, reason: str) -> None:
        if self.reason is None:
            names = ", ".join(sorted(self.domains)) or self.meter.method
            log.warning("joules of %s are lost: %s", names, reason)
        self.reason = reason


class CombinedMeter:
    """Meters that each count domains of their own; none of them is `unknown`."""

    def __init__(
        self,
        meters: Iterable[Meter],
        *,
        lost: Mapping[str, str] | None = None,
        paused_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Combine.

        Args:
            meters: The parts; a combined one adds its parts.
            lost: Domains that no part can count although they are used, and why.
            paused_s: For how long this process has been stopped so far.
            clock: Tells how long a part has been failing.
        """
        self._parts = [_Part(part) for meter in meters for part in parts_of(meter)]
        self._lost = dict(lost or {})
        self._paused_s = paused_s
        self._clock = clock
        self._gaps: frozenset[str] = frozenset()

    @property
    def parts(self) -> tuple[Meter, ...]:
        """The meters, one by one."""
        return tuple(part.meter for part in self._parts)

    @property
    def _left(self) -> list[Meter]:
        return [part.meter for part in self._parts if part.reason is None]

    @property
    def lost(self) -> dict[str, str]:
        """The domains that are lost now, and why."""
        found = dict(self._lost)
        for part in self._parts:
            if part.reason is not None:
                found |= dict.fromkeys(part.domains or (part.meter.method,), part.reason)
        return found

    @property
    def method(self) -> str:
        """The methods of what is left, each once; a lost domain is `unknown:` and its name."""
        names = [meter.method for meter in self._left] or [_UNKNOWN]
        names += [f"{_UNKNOWN}:{domain}" for domain in sorted(self.lost)] if self._left else []
        return "+".join(dict.fromkeys(names))

    @property
    def measured(self) -> bool:
        """Whether all that is left is read from sensors."""
        left = self._left
        return bool(left) and all(meter.measured for meter in left)

    @property
    def period_s(self) -> float:
        """Of the slowest counter that is left."""
        return max((meter.period_s for meter in self._left), default=0.0)

    @property
    def lag_s(self) -> float:
        """Of the counter that lags most."""
        return max((meter.lag_s for meter in self._left), default=0.0)

    @property
    def uncertainty(self) -> float:
        """Of the least certain meter that is left."""
        return max((meter.uncertainty for meter in self._left), default=1.0)

    @property
    def idle_w(self) -> Mapping[str, float] | None:
        """Known only when every part that is left knows it."""
        parts = [meter.idle_w for meter in self._left]
        known = [part for part in parts if part is not None]
        if not parts or len(known) < len(parts):
            return None
        return {domain: watts for part in known for domain, watts in part.items()}

    def read(self) -> Reading:
        """Read every part, then merge; the CPU times come from the first that has them."""
        now_s = self._clock()
        readings, failure = [], None
        for part in self._parts:
            try:
                reading = part.read(now_s)
            except SensorError as error:
                failure = error
                continue
            if reading is not None:
                readings.append(reading)
                self._gaps |= reading.gaps - reading.held
        if failure is not None:
            raise failure
        gaps, self._gaps = self._gaps, frozenset()
        return self._merge(readings or [Reading(self._clock())], gaps)

    def _merge(self, readings: list[Reading], gaps: frozenset[str]) -> Reading:
        lost = self.lost
        joules: dict[str, float] = {}
        as_of_s: dict[str, float] = {}
        num_faults: dict[str, int] = {}
        held = frozenset[str]().union(*(reading.held for reading in readings)) - gaps
        for reading in readings:
            lost |= reading.lost
            num_faults |= reading.num_faults
            for domain, value in reading.joules.items():
                joules[domain] = joules.get(domain, 0.0) + value
            for domain, moment_s in reading.as_of_s.items():
                as_of_s[domain] = min(as_of_s.get(domain, moment_s), moment_s)
        timed = next((r for r in readings if r.own_cpu_s is not None), readings[0])
        return replace(
            timed,
            at_s=readings[-1].at_s,
            joules={domain: value for domain, value in joules.items() if domain not in lost},
            as_of_s=as_of_s,
            num_faults=num_faults,
            gaps=gaps | held,
            held=held,
            lost=lost,
            paused_s=timed.paused_s + self._paused_s(),
        )


def parts_of(meter: Meter) -> tuple[Meter, ...]:
    """The meters that a meter is made of; it alone where it is not combined."""
    return meter.parts if isinstance(meter, CombinedMeter) else (meter,)
