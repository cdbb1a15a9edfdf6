"""Notices that this process was stopped, or the machine suspended.

Contract: a thread beats four times a second. Where two beats are more than two seconds apart and
the process has used hardly any CPU time in between, it was stopped (SIGSTOP, `docker pause`); where
the clock that goes on during suspension is ahead, the machine slept. Reading the sum beats too.

Not covered: stops of less than two seconds; single threads that are stopped; clocks that go on
during suspension outside of Linux.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from greenllm.energy.meters.weakly import repeat

_BEAT_S = 0.25
_SHORTEST_PAUSE_S = 2.0
_BUSY = 0.25


def awake_and_asleep_s() -> float:
    """Seconds since the machine was started, suspension included where the system tells it."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Heartbeat:
    """Sums up for how long nothing ran."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        boot_clock: Callable[[], float] = awake_and_asleep_s,
        cpu_s: Callable[[], float] = time.process_time,
        is_alone: bool = False,
    ) -> None:
        """Begin to beat; `is_alone` leaves beating to `paused_s`."""
        self._clocks = (clock, boot_clock, cpu_s)
        self._last = self._now()
        self._sum_s = 0.0
        self._beating = threading.Lock()
        if not is_alone:
            repeat("heartbeat", self._beat)

    def paused_s(self) -> float:
        """For how long this process has been stopped or suspended so far, in seconds."""
        self._beat()
        return self._sum_s

    def _now(self) -> tuple[float, float, float]:
        clock, boot_clock, cpu_s = self._clocks
        return clock(), boot_clock(), cpu_s()

    def _beat(self) -> float:
        with self._beating:
            before, self._last = self._last, self._now()
            pairs = zip(self._last, before, strict=True)
            passed_s, with_sleep_s, used_s = (now - then for now, then in pairs)
            asleep_s = max(0.0, with_sleep_s - passed_s)
            stopped_s = passed_s if used_s < _BUSY * passed_s else 0.0
            missed_s = asleep_s + max(0.0, stopped_s - _BEAT_S)
            if missed_s > _SHORTEST_PAUSE_S:
                self._sum_s += missed_s
        return _BEAT_S
