"""The search for settings, on a bench that is made up: it finds the best and measures few."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.evaluation import ExampleResult, TaskResult
from evals.tasks.base import Answer, Ask, Measure, Query, Score
from evals.tuning.search import KEPT, NothingFitsError, Search, SearchLimits, Trial, front, ranked
from evals.tuning.slices import slices, whole
from evals.tuning.space import (
    DEFAULT,
    Setting,
    Space,
    all_of,
    by_server,
    first_of,
    parse_space,
    single_changes,
)
from greenllm.config import ConfigError
from greenllm.intervals import wilson

SPACE = parse_space("quantize=none,int8,int4;threads=auto,1,eco;speculative=off,auto,early_exit")
Costs = Callable[[Setting], float]


class MadeUp:
    """Costs, quality and latency are functions of the setting; more examples cost more."""

    def __init__(
        self,
        costs: Costs,
        *,
        quality: Costs = lambda setting: 1.0,
        p95_s: Costs = lambda setting: 0.1,
        refused: Sequence[str] = (),
    ) -> None:
        self.costs, self.quality, self.p95_s, self.refused = costs, quality, p95_s, refused
        self.asked: list[tuple[int, int]] = []

    def measure(self, settings_: Sequence[Setting], num_examples: int) -> list[Trial]:
        self.asked.append((len(settings_), num_examples))
        return [self._trial(setting, num_examples) for setting in settings_]

    def _trial(self, setting: Setting, size: int) -> Trial:
        quality = wilson(round(self.quality(setting) * size), size)
        assert quality is not None
        is_refused = any(value in self.refused for _, value in setting.values)
        cost = self.costs(setting)
        spent_j = 5.0 + 0.1 * size
        error = "not here" if is_refused else None
        return Trial(setting, size, quality, cost, self.p95_s(setting), spent_j, error)


def factors(seed: int, space: Space = SPACE) -> Costs:
    """Costs whose effects multiply."""
    source = random.Random(seed)
    effects = {(n, v): source.uniform(0.5, 2.0) for n, values in space.items() for v in values}
    return lambda setting: math.prod(effects[pair] for pair in setting.values)


def test_a_space_is_every_combination() -> None:
    assert len(all_of(SPACE)) == 27
    assert first_of(SPACE).values == (
        ("quantize", "none"), ("threads", "auto"), ("speculative", "off"),
    )  # fmt: skip
    assert len(single_changes(SPACE)) == 7
    assert len(by_server(all_of(SPACE))) == 9, "what requests say needs no server of its own"
    setting = first_of(SPACE)
    assert setting.options() == ["--quantize", "none", "--threads", "auto"]
    assert setting.request == {"speculative": "off"}
    assert parse_space(DEFAULT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("threads", "must be like threads=1,2"),
        ("threads=1,,2", "must be like"),
        ("colour=red", "has no option --colour"),
        ("threads=1,1", "there twice"),
        ("threads=1;threads=2", "there twice"),
    ],
)
def test_a_space_that_cannot_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_space(text)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_the_best_is_found_where_effects_multiply(seed: int) -> None:
    costs = factors(seed)
    search = Search(MadeUp(costs), SearchLimits())
    best = search.run(SPACE, few=16, many=128)
    assert best.num_examples == 128
    assert best.joules_per_token == pytest.approx(min(map(costs, all_of(SPACE))))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.0, 0.08))
def test_noise_of_measuring_costs_little(seed: int, noise: float) -> None:
    costs, source = factors(seed), random.Random(seed)

    def noisy(setting: Setting) -> float:
        return costs(setting) * source.uniform(1 - noise, 1 + noise)

    found = Search(MadeUp(noisy), SearchLimits()).run(SPACE, few=16, many=128)
    cheapest = min(map(costs, all_of(SPACE)))
    assert costs(found.setting) <= cheapest * ((1 + noise) / (1 - noise)) ** 4


def test_it_spends_a_fraction_of_what_measuring_all_does() -> None:
    search, all_ = (Search(MadeUp(factors(3)), SearchLimits()) for _ in range(2))
    found = search.run(SPACE, few=16, many=512)
    assert found.setting == all_.exhaust(SPACE, 512).setting
    assert search.spent_j < 0.3 * all_.spent_j
    assert max(count for count, _ in search.bench.asked[1:]) <= KEPT  # type: ignore[attr-defined]


def test_limits_are_kept_though_others_are_cheaper() -> None:
    def quality(setting: Setting) -> float:
        return 0.4 if ("quantize", "int4") in setting.values else 0.9

    def p95_s(setting: Setting) -> float:
        return 2.0 if ("threads", "1") in setting.values else 0.5

    def costs(setting: Setting) -> float:
        cheap = sum(pair in setting.values for pair in (("quantize", "int4"), ("threads", "1")))
        return 1.0 / (1 + cheap)

    bench = MadeUp(costs, quality=quality, p95_s=p95_s)
    free = Search(bench, SearchLimits()).run(SPACE, few=32, many=64)
    assert {("quantize", "int4"), ("threads", "1")} <= set(free.setting.values)
    limited = Search(bench, SearchLimits(slowest_s=1.0, quality_floor=0.8)).run(
        SPACE, few=32, many=64
    )
    assert not {("quantize", "int4"), ("threads", "1")} & set(limited.setting.values)
    with pytest.raises(NothingFitsError, match="--quality-floor"):
        Search(bench, SearchLimits(quality_floor=0.99)).run(SPACE, few=32, many=64)


def test_what_a_server_refuses_is_left_out() -> None:
    bench = MadeUp(lambda setting: 0.1 if ("quantize", "int4") in setting.values else 1.0,
                   refused=["int4"])  # fmt: skip
    found = Search(bench, SearchLimits()).run(SPACE, few=16, many=32)
    assert ("quantize", "int4") not in found.setting.values


def test_a_budget_ends_it_with_the_best_so_far() -> None:
    search = Search(MadeUp(factors(5)), SearchLimits(budget_j=60.0))
    found = search.run(SPACE, few=16, many=512)
    assert search.stopped_by == "budget"
    assert search.spent_j <= 60.0
    assert found.num_examples == 16


def test_what_was_found_before_the_budget_ended_it_beats_the_first_setting() -> None:
    """The first setting was measured on more examples before, for the quality to keep."""
    bench = MadeUp(lambda setting: 1.0 if setting == first_of(SPACE) else 0.5)
    search = Search(bench, SearchLimits(budget_j=100.0))
    search.trials += bench.measure([first_of(SPACE)], 64)
    found = search.run(SPACE, few=16, many=512)
    assert search.stopped_by == "budget"
    assert found.setting != first_of(SPACE)


def test_a_budget_too_small_to_begin_leaves_what_is_known() -> None:
    bench = MadeUp(factors(5))
    search = Search(bench, SearchLimits(budget_j=20.0))
    (first,) = bench.measure([first_of(SPACE)], 64)
    search.trials.append(first)
    assert search.run(SPACE, few=16, many=512) is first
    assert (search.stopped_by, len(search.trials)) == ("budget", 1)


def test_a_setting_is_judged_by_its_last_trial() -> None:
    qualities = {16: 1.0, 32: 0.5}

    class Fading(MadeUp):
        def _trial(self, setting: Setting, size: int) -> Trial:
            self.quality = lambda setting: qualities[size]
            return super()._trial(setting, size)

    with pytest.raises(NothingFitsError):
        Search(Fading(factors(2)), SearchLimits(quality_floor=0.9)).run(
            parse_space("threads=1"), few=16, many=32
        )


def test_the_front_holds_what_nothing_beats() -> None:
    bench = MadeUp(
        factors(1),
        quality=lambda setting: 0.5 if ("quantize", "int4") in setting.values else 0.9,
    )
    trials = bench.measure(all_of(SPACE), 100)
    found = front(trials)
    cheapest = min(trials, key=lambda trial: trial.joules_per_token)
    assert cheapest in found
    for one in found:
        better = [t for t in trials if t.quality.value >= one.quality.value]
        assert all(t.joules_per_token >= one.joules_per_token for t in better)


def test_predictions_are_products_of_single_changes() -> None:
    costs = factors(9)
    bench = MadeUp(costs)
    order = ranked(SPACE, bench.measure(single_changes(SPACE), 16), SearchLimits())
    assert order == sorted(all_of(SPACE), key=costs)


@dataclass(frozen=True)
class Numbers:
    """Asks for nothing; an answer is worth its number."""

    size: int
    name: str = "numbers"
    measure: Measure = "accuracy"
    chance: float | None = None

    def count(self) -> int:
        return self.size

    def example(self, i: int) -> Query:
        return Ask(({"role": "user", "content": str(i)},))

    def score(self, i: int, answer: Answer) -> Score:
        return Score(float(i))


@given(st.integers(1, 40), st.integers(1, 6))
def test_slices_are_the_whole_task_once(size: int, parts: int) -> None:
    task = Numbers(size)
    cut = slices([task], parts)
    scores = [part.score(i, Answer()) for (part,) in cut for i in range(part.count())]
    assert [score.value for score in scores] == list(range(size))
    results = [
        TaskResult(
            part, [ExampleResult(part.score(i, Answer()), None) for i in range(part.count())], 0.5
        )
        for (part,) in cut
    ]
    (joined,) = whole(results)
    assert [example.score.value for example in joined.examples] == list(range(size))
    assert joined.duration_s == 0.5 * len(cut)
