"""Arrivals for a fleet of any size, from a trace of one service.

Contract: deterministic for a seed. A larger load is several copies of the trace, each begun at
another place and going round; a smaller one leaves arrivals out at random. Times between arrivals
are so the trace's own at one copy, and smoother with many, as those of independent services are.

The reader is `evals.load.plan`'s: it names the line that is wrong. Not covered: services whose
peaks come together; the hours of the day, of which the trace has one.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from evals.entry import BenchError
from evals.load.plan import Shot, length_factor, read_trace, scale_trace
from evals.studies.placement.machine import Machine
from greenllm.energy.period import parse_moment


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the simulated fleet, `at_s` after the start."""

    at_s: float
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, its lengths made to fit; it repeats after `period_s`."""

    shots: tuple[Shot, ...]
    start_s: float
    name: str

    @property
    def period_s(self) -> float:
        """Its length with one mean time between arrivals after the last."""
        last_s = self.shots[-1].at_s
        return last_s + last_s / max(1, len(self.shots) - 1)

    def demand(self, machine: Machine, batch: int) -> float:
        """Machines that the trace as it is keeps busy, generating in batches of this size."""
        prompt_tokens = sum(shot.prompt_tokens for shot in self.shots)
        tokens = sum(shot.max_tokens for shot in self.shots)
        return machine.busy_s(prompt_tokens, tokens, batch) / self.period_s

    def arrivals(self, copies: float, window_s: float, seed: int) -> list[Arrival]:
        """Arrivals of so many copies within a time; the first copy begins where the trace does."""
        source, found = random.Random(seed), list[Arrival]()
        for number in range(math.ceil(copies)):
            begin_s = source.uniform(0, self.period_s) if number else 0.0
            kept = min(1.0, copies - number)
            for arrival in self._copy(begin_s, window_s):
                if kept == 1.0 or source.random() < kept:
                    found.append(arrival)
        return sorted(found, key=attrgetter("at_s"))

    def _copy(self, begin_s: float, window_s: float) -> Iterator[Arrival]:
        place = bisect_left(self.shots, begin_s, key=attrgetter("at_s"))
        round_s = -begin_s
        while True:
            for shot in self.shots[place:]:
                at_s = round_s + shot.at_s
                if at_s >= window_s:
                    return
                yield Arrival(at_s, shot.prompt_tokens, shot.max_tokens)
            place, round_s = 0, round_s + self.period_s


def load_trace(path: Path, max_context: int) -> tuple[Trace, float]:
    """A trace file; its times count as UTC. Lengths shrink by the factor that is returned.

    Raises:
        BenchError: the file cannot be read, or all its arrivals come at once.
        TraceError: a line is broken; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BenchError(f"--trace: {error}") from error
    whole = read_trace(lines)
    shots = scale_trace(whole, max_context=max_context)
    if shots[-1].at_s <= 0:
        raise BenchError(f"--trace: {path.name} needs arrivals at two times or more")
    place = lines[0].split(",").index("TIMESTAMP")
    start_s = parse_moment("TIMESTAMP", lines[1].split(",")[place], 0.0)
    return Trace(tuple(shots), start_s, path.name), length_factor(whole, max_context)
