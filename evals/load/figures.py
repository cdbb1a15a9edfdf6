"""What a run comes to: counts, rates, percentiles and joules of its answers.

Contract: pure. Only whole answers count: a failed one adds neither tokens nor a latency, and is
listed with its reason. What no answer said is None, never 0. Rates are over the time from the first
request sent to the last answer's end, so the tail of a closed loop, where fewer are in flight, is
in them.

Not covered: time series; latencies corrected for what an overloaded client sent late (the largest
delay is reported instead).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """One request's end, on the client's monotonic clock; `failure` says why it does not count."""

    sent_s: float
    ended_s: float
    first_s: float | None = None
    last_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    energy_j: float | None = None
    energy_method: str | None = None
    late_s: float = 0.0
    failure: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first text."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first; None for answers of one token."""
        if self.first_s is None or self.last_s is None or self.completion_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.completion_tokens - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a latency."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class LoadEnergy:
    """Joules that the server said its answers took."""

    joules: float
    joules_per_token: float | None
    method: str
    answers: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures."""

    sent: int
    ok: int
    failed: int
    failures: dict[str, int]
    wall_s: float
    prompt_tokens: int | None
    completion_tokens: int
    tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    ttft_s: Spread | None
    tpot_s: Spread | None
    end_to_end_s: Spread | None
    largest_delay_s: float
    energy: LoadEnergy | None


def percentile(values: Sequence[float], quantile: float) -> float:
    """Linear interpolation between the two nearest of the sorted values.

    Raises:
        ValueError: there are no values, or the quantile is not within 0 and 1.
    """
    if not values or not 0 <= quantile <= 1:
        raise ValueError(f"no {quantile} quantile of {len(values)} values")
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Percentiles of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(*(percentile(known, quantile) for quantile in QUANTILES))


def summarize(answers: Sequence[LoadAnswer]) -> Summary:
    """All figures of a run."""
    whole = [answer for answer in answers if answer.failure is None]
    failures = Counter(answer.failure for answer in answers if answer.failure is not None)
    wall_s = _wall_s(answers)
    prompts = [answer.prompt_tokens for answer in whole]
    known = [count for count in prompts if count is not None]
    prompt_tokens = sum(known) if known and len(known) == len(prompts) else None
    completion_tokens = sum(answer.completion_tokens for answer in whole)
    return Summary(
        sent=len(answers),
        ok=len(whole),
        failed=len(answers) - len(whole),
        failures=dict(failures.most_common()),
        wall_s=wall_s,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        tokens_per_s=rate(completion_tokens, wall_s),
        prompt_tokens_per_s=rate(prompt_tokens, wall_s),
        ttft_s=spread([answer.ttft_s for answer in whole]),
        tpot_s=spread([answer.tpot_s for answer in whole]),
        end_to_end_s=spread([answer.ended_s - answer.sent_s for answer in whole]),
        largest_delay_s=max((answer.late_s for answer in answers), default=0.0),
        energy=_energy(whole),
    )


def rate(amount: float | None, seconds: float | None) -> float | None:
    """Amount per second, where both are known and there is something to divide."""
    return amount / seconds if amount and seconds else None


def _wall_s(answers: Sequence[LoadAnswer]) -> float:
    if not answers:
        return 0.0
    return max(answer.ended_s for answer in answers) - min(answer.sent_s for answer in answers)


def _energy(whole: Sequence[LoadAnswer]) -> LoadEnergy | None:
    """Sums over the answers that came with joules."""
    told = [(a.energy_j, a) for a in whole if a.energy_j is not None]
    if not told:
        return None
    joules = math.fsum(energy_j for energy_j, _ in told)
    tokens = sum(answer.completion_tokens for _, answer in told)
    methods = sorted({answer.energy_method or "unknown" for _, answer in told})
    return LoadEnergy(joules, joules / tokens if tokens else None, ", ".join(methods), len(told))
