"""When requests come and how long they are: those of a trace, or made up with its moments.

Contract: deterministic for a seed. What is made up has the mean and the standard deviation of the
conversations in the Azure LLM inference trace of 2023 (CC BY 4.0; Patel et al., "Splitwise", ISCA
2024): gamma times between arrivals, log-normal lengths, cut at the trace's longest. The trace has
bursts and an hour's course, which are not made up.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

from evals.load.plan import Shot, length_factor, scale_trace
from evals.studies.placement.trace import Trace, load_trace

_ARRIVALS = 19_366


@dataclass(frozen=True, slots=True)
class Moments:
    """A figure's mean, its standard deviation, and the largest there was."""

    mean: float
    deviation: float
    largest: float

    def gamma(self, source: random.Random) -> float:
        """A gamma number with this mean and deviation."""
        shape = (self.mean / self.deviation) ** 2
        return source.gammavariate(shape, self.mean / shape)

    def length(self, source: random.Random) -> int:
        """A log-normal number of tokens with these moments, between 1 and the largest."""
        variance = math.log(1 + (self.deviation / self.mean) ** 2)
        drawn = source.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return max(1, min(round(drawn), round(self.largest)))


BETWEEN_S = Moments(0.18083, 0.19786, 4.3)
PROMPT_TOKENS = Moments(1154.7, 1108.8, 14_050)
TOKENS = Moments(211.1, 162.9, 1000)


def made_up(seed: int, count: int = _ARRIVALS) -> list[Shot]:
    """Arrivals like those of the trace."""
    source, at_s = random.Random(seed), 0.0
    shots = []
    for number in range(count):
        shots.append(Shot(number, PROMPT_TOKENS.length(source), TOKENS.length(source), at_s))
        at_s += BETWEEN_S.gamma(source)
    return shots


def trace_of(path: Path | None, max_context: int, seed: int) -> tuple[Trace, float]:
    """A trace's file, or what is made up without; lengths shrink by the factor that is returned.

    Raises:
        GreenllmError: the file cannot be used.
    """
    if path is not None:
        return load_trace(path, max_context)
    shots = made_up(seed)
    scaled = scale_trace(shots, max_context=max_context)
    return Trace(tuple(scaled), 0.0, "made up"), length_factor(shots, max_context)
