"""The course of a calibration: the load in stages, CPU times and the wall meter beside it.

Contract: a stage's first part is left out, until power and meter have settled. A sample of the wall
meter goes with the hardware threads that were busy since the sample before it. Reading fails now
and then, and is tried again; only a wall meter that never answers is an error.

Not covered: wall meters that lag by more than a third of a stage.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from greenllm.energy.calibration.fit import LEAST_SAMPLES, PowerSample
from greenllm.energy.calibration.wall import WallError, WallMeter, WallSample
from greenllm.energy.calibration.work import WORKS, Work, busy
from greenllm.energy.meters.cputime import CpuClock

_POLL_EVERY_S = 0.5
_LONGEST_SETTLING_S = 5.0
_SETTLING = 1 / 3
_SHORTEST_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """So many busy hardware threads, for so long; 0 is idle."""

    num_busy: int
    work: Work
    seconds: float

    def __str__(self) -> str:
        name = f"{self.num_busy} busy with {self.work}" if self.num_busy else "idle"
        return f"{name}, {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds that the machine had used by a moment in Unix seconds."""

    at_s: float
    cpu_s: float


@dataclass(slots=True)
class Recording:
    """What was seen: when stages began, had settled and ended; CPU times; power."""

    periods: list[tuple[float, float, float]] = field(default_factory=list)
    cpu: list[CpuSample] = field(default_factory=list)
    wall: list[WallSample] = field(default_factory=list)
    error: WallError | None = None


def plan(num_cpus: int, seconds: float) -> list[Stage]:
    """Idle, one hardware thread, half of them, all; each busy one with both kinds of work."""
    loads = sorted({1, max(1, num_cpus // 2), num_cpus})
    share_s = seconds / len(WORKS)
    return [
        Stage(0, WORKS[0], seconds),
        *(Stage(load, work, share_s) for load in loads for work in WORKS),
    ]


class Course:
    """Goes through the stages."""

    def __init__(
        self,
        wall: WallMeter,
        cpu: CpuClock,
        *,
        work: Callable[[int, Work, float], AbstractContextManager[list[int]]] = busy,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wall = wall
        self._cpu = cpu
        self._work = work
        self._clock = clock
        self._sleep = sleep
        self._recording = Recording()

    def run(self, stages: Sequence[Stage]) -> Iterator[Stage]:
        """Give each stage before it begins."""
        for stage in stages:
            yield stage
            with self._work(stage.num_busy, stage.work, stage.seconds) as pids:
                # Told apart as training is, so that what they use is known at each look.
                self._cpu.training.update(pids)
                self._watch(stage.seconds)
            self._cpu.training.difference_update(pids)

    def _watch(self, seconds: float) -> None:
        began_s = self._clock()
        ends_s = began_s + seconds
        settled_s = began_s + min(_LONGEST_SETTLING_S, _SETTLING * seconds)
        self._recording.periods.append((began_s, settled_s, ends_s))
        self._look()
        while (left_s := ends_s - self._clock()) > 0:
            self._sleep(min(left_s, _POLL_EVERY_S))
            self._look()

    def _look(self) -> None:
        """Read both; the power may have taken long to tell, so it is of the moment after it."""
        try:
            sample = self._wall.poll(self._clock())
        except WallError as error:
            self._recording.error, sample = error, None
        now_s = self._clock()
        if sample is not None:
            self._recording.wall.append(WallSample(now_s, sample.watts))
        self._recording.cpu.append(CpuSample(now_s, self._cpu.read().machine_s))

    @property
    def last_w(self) -> float | None:
        """What the wall meter said last."""
        return self._recording.wall[-1].watts if self._recording.wall else None

    def samples(self, wait_s: float = 0.0) -> list[PowerSample]:
        """What came of it; waits for rows that are written late, if there are too few yet.

        Raises:
            WallError: the wall meter never answered.
        """
        found = pair(self._recording)
        give_up_s = self._clock() + wait_s
        while len(found) < LEAST_SAMPLES:
            late = self._wall.between(self._recording.cpu[0].at_s, self._recording.cpu[-1].at_s)
            found = max(found, self._with(late), key=len)
            if self._clock() >= give_up_s:
                break
            self._sleep(_POLL_EVERY_S)
        if not found and self._recording.error is not None:
            raise self._recording.error
        return found

    def _with(self, wall: list[WallSample]) -> list[PowerSample]:
        return pair(Recording(self._recording.periods, self._recording.cpu, wall))


def pair(seen: Recording) -> list[PowerSample]:
    """Each sample of the wall meter in a settled part, with the threads that were busy."""
    found = []
    for began_s, settled_s, ends_s in seen.periods:
        before_s = settled_s
        for sample in seen.wall:
            if not settled_s < sample.at_s <= ends_s:
                continue
            since_s = max(began_s, min(before_s, sample.at_s - _SHORTEST_WINDOW_S))
            used_s = _cpu_s(seen.cpu, sample.at_s) - _cpu_s(seen.cpu, since_s)
            found.append(PowerSample(used_s / (sample.at_s - since_s), sample.watts))
            before_s = sample.at_s
    return found


def _cpu_s(samples: Sequence[CpuSample], at_s: float) -> float:
    """CPU seconds by a moment, between the samples around it."""
    after = bisect_left(samples, at_s, key=lambda sample: sample.at_s)
    if after == 0 or after == len(samples):
        return samples[min(after, len(samples) - 1)].cpu_s
    low, high = samples[after - 1], samples[after]
    return low.cpu_s + (high.cpu_s - low.cpu_s) * (at_s - low.at_s) / (high.at_s - low.at_s)
