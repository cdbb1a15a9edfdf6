"""Rounds of answers become figures: shares of the first, medians of what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from evals.compared import scored
from evals.evaluation import ExampleResult, TaskResult
from evals.served import QueryCost
from evals.tasks.base import Answer, Ask, Measure, Query, Score
from evals.tuning.servers import trial_of
from evals.tuning.space import Setting


@dataclass(frozen=True)
class Asked:
    """A task of which only the name matters."""

    name: str = "asked"
    measure: Measure = "accuracy"
    chance: float | None = None

    def count(self) -> int:
        return 0

    def example(self, i: int) -> Query:
        return Ask(())

    def score(self, i: int, answer: Answer) -> Score:
        return Score(0.0)


def example(right: float, joules: float | None, duration_s: float = 1.0) -> ExampleResult:
    cost = QueryCost(joules, joules, None, prompt_tokens=3, completion_tokens=5)
    return ExampleResult(Score(right), cost, duration_s)


def result(
    examples: Sequence[ExampleResult], duration_s: float = 2.0, name: str = "asked"
) -> TaskResult:
    return TaskResult(Asked(name), examples, duration_s)


def test_a_share_of_latencies_is_the_least_that_holds_so_many() -> None:
    """Of twenty, 95 % are done with the nineteenth; the slowest is not asked."""
    found = result([example(1, 1.0, float(i)) for i in range(20, 0, -1)])
    assert found.latency_s(0.95) == 19
    assert found.latency_s(0.5) == 10
    assert found.latency_s(1.0) == 20
    assert result([example(1, 1.0, 7.0)]).latency_s(0.95) == 7
    assert result([example(1, 1.0, float(i)) for i in range(1, 22)]).latency_s(0.95) == 20


def test_joules_are_medians_over_rounds_of_all_answers() -> None:
    rounds = [
        [result([example(1, 1.0), example(0, 3.0)], 1.0), result([example(1, 2.0)], 2.0, "other")],
        [result([example(0, 6.0), example(0, 6.0)], 4.0), result([example(0, 6.0)], 5.0, "other")],
        [result([example(0, 3.0), example(0, 3.0)], 2.0), result([example(0, 3.0)], 2.0, "other")],
    ]
    found = scored(rounds)
    assert found.solved.value == pytest.approx(2 / 3)
    assert found.by_task == {"asked": 0.5, "other": 1.0}
    assert found.joules_per_answer == pytest.approx(9 / 3)
    assert found.joules_per_token == pytest.approx(9 / 15)
    assert found.seconds_per_token == pytest.approx(4 / 15)
    assert found.p95_s == 1.0


def test_joules_are_unknown_where_one_answer_says_none() -> None:
    found = scored([[result([example(1, 1.0), example(1, None)])]])
    assert found.joules_per_answer is None
    assert found.joules_per_token is None


def test_few_right_answers_are_not_certain() -> None:
    """A search must not drop a setting for one task of eight as if it knew."""
    one = trial_of(Setting(()), [result([example(1, 1.0) for _ in range(8)])])
    assert (one.quality.value, one.quality.high) == (1.0, 1.0)
    assert 0.6 < one.quality.low < 0.8
    none = trial_of(Setting(()), [result([example(0, 1.0) for _ in range(8)])])
    assert none.quality.low == 0.0
    assert 0.2 < none.quality.high < 0.4
