"""Seconds of a step and of its parts: rounds with a stopwatch around every part, and without.

Contract: rounds with and without stopwatches take turns. What counts is the mean of the middle half
of the rounds by the time of the whole step: as little moved by outliers as a median, and unlike
medians, means of the same rounds add up: the parts and the rest are the step, exactly. On CUDA the
stopwatches wait for the device, which is part of what they cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from evals.profiling.parts import Part
from evals.profiling.step import Step

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Round:
    """Wall seconds of one step; `parts_s` in the order of the parts."""

    step_s: float
    parts_s: tuple[float, ...] = ()

    @property
    def rest_s(self) -> float:
        """What is in no part."""
        return self.step_s - sum(self.parts_s)


@dataclass(frozen=True, slots=True)
class Times:
    """A step with a stopwatch around every part, and without any."""

    watched: Round
    plain: Round


def middle(rounds: Sequence[Round]) -> Round:
    """Mean of the middle half of the rounds, by the time of the whole step."""
    ordered = sorted(rounds, key=lambda one: one.step_s)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    columns = zip(*(one.parts_s for one in kept), strict=True)
    parts_s = tuple(sum(column) / len(kept) for column in columns)
    return Round(sum(one.step_s for one in kept) / len(kept), parts_s)


def time_step(
    step: Step, parts: Sequence[Part], rounds: int, clock: Clock = time.perf_counter
) -> Times:
    """Time a step that has been warmed up."""
    plain: list[Round] = []
    watched: list[Round] = []
    for _ in range(rounds):
        plain.append(Round(_timed(step, clock)))
        watches = [_Watch(step, clock) for _ in parts]
        with ExitStack() as stack:
            for part, watch in zip(parts, watches, strict=True):
                watch.attach(part, stack)
            step_s = _timed(step, clock)
        watched.append(Round(step_s, tuple(watch.total_s for watch in watches)))
    return Times(middle(watched), middle(plain))


def _timed(step: Step, clock: Clock) -> float:
    step.prepare()
    began_s = clock()
    step.run()
    return clock() - began_s


class _Watch:
    """Seconds between the beginnings and ends of a part's modules."""

    def __init__(self, step: Step, clock: Clock) -> None:
        self.total_s = 0.0
        self._wait = step.wait
        self._clock = clock
        self._began_s = 0.0

    def attach(self, part: Part, stack: ExitStack) -> None:
        """Look at a part until the stack is closed."""
        for module in part.modules:
            stack.callback(module.register_forward_pre_hook(self._begin).remove)
            stack.callback(module.register_forward_hook(self._end).remove)

    def _begin(self, *call: Any) -> None:
        self._wait()
        self._began_s = self._clock()

    def _end(self, *call: Any) -> None:
        self._wait()
        self.total_s += self._clock() - self._began_s
