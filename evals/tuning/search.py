"""Finds settings with few joules per token, within limits, without measuring them all.

    1. screen    the first setting and every single change of it, on few examples
    2. predict   every other setting as the product of its changes
    3. halve     the best of these on ever more examples, the better half goes on

Contract: what is returned keeps the limits in its last trial, and was measured on all examples
unless a budget or the limits ended the search before; with few examples a setting is only left out
for its quality where its whole interval is below the floor, and for its latency where it is above
the limit by a quarter. Joules of every trial are counted, starting
servers included; a budget ends the search with the best so far. Pure but for `Bench.measure`.

Not covered: options whose effects do not multiply: a pair that only pays together may be missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evals.tuning.space import Setting, Space, all_of, single_changes
from greenllm.core import GreenllmError
from greenllm.intervals import Interval

KEPT = 4
_SLACK = 1.25
Say = Callable[[str], None]


class NothingFitsError(GreenllmError):
    """No setting keeps the limits."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting on so many examples; `spent_j` is all that finding it out has cost.

    `error` is why a server did not take the setting; its figures mean nothing then.
    """

    setting: Setting
    num_examples: int
    quality: Interval
    joules_per_token: float
    p95_s: float
    spent_j: float
    error: str | None = None


class TrialBench(Protocol):
    """Measures settings."""

    def measure(self, settings: Sequence[Setting], num_examples: int) -> list[Trial]:
        """One trial for each, in order."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a setting has to keep, and what the search may cost."""

    slowest_s: float | None = None
    quality_floor: float = 0.0
    budget_j: float | None = None

    def may_keep(self, trial: Trial) -> bool:
        """Whether more examples could still show that it keeps them."""
        slowest = math.inf if self.slowest_s is None else _SLACK * self.slowest_s
        is_good = trial.quality.high >= self.quality_floor
        return trial.error is None and is_good and trial.p95_s <= slowest

    def keeps(self, trial: Trial) -> bool:
        """Whether it keeps them as measured."""
        slowest = math.inf if self.slowest_s is None else self.slowest_s
        is_good = trial.quality.value >= self.quality_floor
        return trial.error is None and is_good and trial.p95_s <= slowest


@dataclass(slots=True)
class Search:
    """A search under way: its trials, and why it ended early if it did."""

    bench: TrialBench
    limits: SearchLimits
    say: Say = lambda text: None
    trials: list[Trial] = field(default_factory=list)
    stopped_by: str | None = None
    _reached: int = 0

    @property
    def spent_j(self) -> float:
        """Joules of all trials so far."""
        return sum(trial.spent_j for trial in self.trials)

    def run(self, space: Space, few: int, many: int) -> Trial:
        """The best setting.

        Raises:
            NothingFitsError: none keeps the limits.
        """
        changes = single_changes(space)
        screened: list[Trial] = []
        if self.limits.budget_j is not None and not self.trials:
            # What one costs has to be known before all can be afforded.
            screened = self._measure(changes[:1], few)
        rest = changes[len(screened) :]
        if not self._can_afford(len(rest), few):
            return self.best()
        screened += self._measure(rest, few)
        alive = ranked(space, screened, self.limits)[:KEPT]
        size = few
        while alive and self.stopped_by is None and size < many:
            size = many if len(alive) == 1 else min(many, 2 * size)
            if not self._can_afford(len(alive), size):
                break
            found = self._measure(alive, size)
            fitting = sorted(filter(self.limits.may_keep, found), key=_cost)
            alive = [trial.setting for trial in fitting[: max(1, len(alive) // 2)]]
        return self.best()

    def exhaust(self, space: Space, many: int) -> Trial:
        """The best of all, each measured on all examples."""
        self._measure(all_of(space), many)
        return self.best()

    def best(self) -> Trial:
        """The cheapest that keeps the limits, of those that came as far as the search did."""
        fitting = [trial for trial in last_of(self.trials) if self.limits.keeps(trial)]
        if not fitting:
            raise NothingFitsError(
                "no setting that was measured keeps the limits: a lower --quality-floor, a longer"
                " --slowest-s or a larger --space may help"
            )
        most = min(self._reached, max(trial.num_examples for trial in fitting))
        return min((t for t in fitting if t.num_examples >= most), key=_cost)

    def _measure(self, settings: Sequence[Setting], size: int) -> list[Trial]:
        found = self.bench.measure(settings, size)
        self.trials += found
        self._reached = max(self._reached, *(trial.num_examples for trial in found))
        self.say(f"{len(found)} settings on {size} examples, {self.spent_j:.0f} J so far")
        return found

    def _can_afford(self, count: int, size: int) -> bool:
        known = [trial for trial in self.trials if trial.error is None]
        if self.limits.budget_j is None or not known:
            return True
        last = known[-1]
        expected_j = count * last.spent_j * max(1.0, size / last.num_examples)
        if self.spent_j + expected_j <= self.limits.budget_j:
            return True
        self.stopped_by = "budget"
        return False


def last_of(trials: Sequence[Trial]) -> list[Trial]:
    """The trial with most examples of each setting."""
    found: dict[Setting, Trial] = {}
    for trial in trials:
        known = found.get(trial.setting)
        if known is None or trial.num_examples >= known.num_examples:
            found[trial.setting] = trial
    return list(found.values())


def ranked(space: Space, screened: Sequence[Trial], limits: SearchLimits) -> list[Setting]:
    """All settings that may keep the limits, the cheapest by prediction first."""
    first, trials = screened[0], {trial.setting: trial for trial in screened}
    effects: dict[tuple[str, str], Trial] = {}
    for trial in screened:
        for pair, usual in zip(trial.setting.values, first.setting.values, strict=True):
            if pair != usual:
                effects[pair] = trial

    def parts(setting: Setting) -> list[Trial]:
        return [effects[pair] for pair in setting.values if pair in effects]

    def predicted(setting: Setting) -> float:
        if setting in trials:
            return trials[setting].joules_per_token
        ratios = (part.joules_per_token / first.joules_per_token for part in parts(setting))
        return first.joules_per_token * math.prod(ratios)

    able = [setting for setting in all_of(space) if all(limits.may_keep(p) for p in parts(setting))]
    if first.setting in able and not limits.may_keep(first):
        able.remove(first.setting)
    return sorted(able, key=predicted)


def _cost(trial: Trial) -> float:
    return trial.joules_per_token


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in quality, joules and latency at once (Pareto)."""
    usable = [trial for trial in trials if trial.error is None]
    return [one for one in usable if not any(_beats(other, one) for other in usable)]


def _beats(one: Trial, other: Trial) -> bool:
    pairs = (
        (-one.quality.value, -other.quality.value),
        (one.joules_per_token, other.joules_per_token),
        (one.p95_s, other.p95_s),
    )
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
