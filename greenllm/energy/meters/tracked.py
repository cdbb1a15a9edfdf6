"""A meter of one domain whose counters are followed (see `track`).

Contract: as `Meter` says, and safe between threads. Where `wait_s` is given, a thread looks at the
counters between readings: a tick is then known to within the time between two looks, and nothing
that a counter does is missed, however rarely the meter is read. A look that does not come back
makes readings fail after a second. Counters that say the same for ten
seconds and twenty periods raise `StillError`.

Not covered: a sensor that does not come back when it is read, and not between readings.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Reading, SensorError, StillError
from greenllm.energy.meters.track import Tracks
from greenllm.energy.meters.weakly import repeat

_STILL_S, _STILL_PERIODS = 10.0, 20
# A counter that ticks more often than this is of the moment at which it is read.
_FINE_S = 0.005
_PATIENCE_S = 1.0


class TrackedMeter:
    """Counters of one domain, added up.

    A subclass says what it is before it calls `__init__`.
    """

    measured = True
    method: str
    period_s: float
    uncertainty: float
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = None
    assumption: str | None = None

    def __init__(
        self,
        domain: str,
        tracks: Tracks,
        *,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait_s: Callable[[float, float], float] | None = None,
    ) -> None:
        """Begin to follow.

        Args:
            domain: What the counters count.
            tracks: Follows them.
            cpu: Tells the CPU times of a reading, if it has any.
            clock: The tracks' clock.
            wait_s: How long to wait for the next look between readings, from the seconds since the
                last reading and those since the counters moved; without it only `read` looks.
        """
        self._domain = domain
        self._tracks = tracks
        self._cpu = cpu
        self._clock = clock
        self._wait_s = wait_s
        self._read_s = self._told_s = clock()
        self._looking = threading.Lock()
        if wait_s is not None:
            repeat(self.method, self._look)

    def _look(self) -> float:
        """Look between readings; what fails here fails in `read` too, and is told."""
        with self._looking, contextlib.suppress(SensorError):
            self._tracks.look()
        now_s = self._clock()
        wait = self._wait_s
        return 0.0 if wait is None else wait(now_s - self._read_s, now_s - self._tracks.moved_s)

    def still_since(self, moment_s: float) -> tuple[str, ...]:
        """Names of the counters that have said the same since a moment."""
        with self._not_looking():
            return self._tracks.still_since(moment_s)

    @contextlib.contextmanager
    def _not_looking(self) -> Iterator[None]:
        """Keep the thread from looking; a driver that hangs there must not hang its reader too."""
        if not self._looking.acquire(timeout=_PATIENCE_S):
            raise SensorError(f"{self.method}: the sensor has not answered for {_PATIENCE_S:g} s")
        try:
            yield
        finally:
            self._looking.release()

    def read(self) -> Reading:
        """What the counters have counted since the meter was made."""
        with self._not_looking():
            now_s = self._read_s = self._tracks.look()
            still_s = max(_STILL_S, _STILL_PERIODS * self.period_s)
            if names := self._tracks.still_since(now_s - still_s):
                raise StillError(names, still_s)
            has_lost, holds_back = self._tracks.take_loss(), self._tracks.holds_back
            gaps = frozenset({self._domain} if has_lost or holds_back else ())
            held = frozenset() if has_lost else gaps
            joules = {self._domain: self._tracks.joules}
            as_of_s = self._as_of_s(now_s)
            faults = {self._domain: count} if (count := self._tracks.num_faults) else {}
        reading = Reading(now_s, joules, as_of_s=as_of_s, num_faults=faults, gaps=gaps, held=held)
        if self._cpu is None:
            return reading
        times = self._cpu.read()
        return replace(
            reading,
            own_cpu_s=times.own_s,
            machine_cpu_s=times.machine_s,
            train_cpu_s=times.train_s,
        )

    @property
    def domain(self) -> str:
        """What the counters count."""
        return self._domain

    def _as_of_s(self, now_s: float) -> dict[str, float]:
        """The moment of the joules, which never goes back; nothing where it is now."""
        as_of_s = self._tracks.as_of_s
        if self.period_s <= _FINE_S and now_s - as_of_s <= _FINE_S:
            self._told_s = now_s
            return {}
        self._told_s = max(self._told_s, as_of_s)
        return {self._domain: self._told_s}
