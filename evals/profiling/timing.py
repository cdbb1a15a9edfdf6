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
from typing import Any

from evals.profiling.parts import Part
from evals.profiling.step import Step

Clock = Callable[[], float]


def middle(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Means of the middle half of the rounds, by their first figure: the time of the whole step."""
    ordered = sorted(rounds, key=lambda one: one[0])
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return [sum(column) / len(kept) for column in zip(*kept, strict=True)]


def time_step(
    step: Step, parts: Sequence[Part], rounds: int, clock: Clock = time.perf_counter
) -> tuple[float, list[float]]:
    """Seconds of a step that has been warmed up, and of its parts and the rest with stopwatches."""
    plain: list[list[float]] = []
    watched: list[list[float]] = []
    for _ in range(rounds):
        plain.append([_timed(step, clock)])
        watches = [_Watch(step, clock) for _ in parts]
        with ExitStack() as stack:
            for part, watch in zip(parts, watches, strict=True):
                watch.attach(part, stack)
            step_s = _timed(step, clock)
        watched.append([step_s, *(watch.total_s for watch in watches)])
    step_s, *parts_s = middle(watched)
    return middle(plain)[0], [*parts_s, step_s - sum(parts_s)]


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
        for module in part.modules.values():
            stack.callback(module.register_forward_pre_hook(self._begin).remove)
            stack.callback(module.register_forward_hook(self._end).remove)

    def _begin(self, *call: Any) -> None:
        self._wait()
        self._began_s = self._clock()

    def _end(self, *call: Any) -> None:
        self._wait()
        self.total_s += self._clock() - self._began_s
