"""The benchmarks' own arithmetic, and one tiny run of the engine arm."""

from __future__ import annotations

import pytest

from evals.evaluation import Example, Result
from evals.lab import interleave, load_bench, story_request
from evals.served import Cost
from evals.studies.ratios import paired_ratio
from evals.studies.sustainability import balance, side_of
from evals.studies.techniques import Continuing, Rounds, figures
from evals.studies.tuned import side_by_side
from evals.tasks.base import Score
from evals.tuning.search import Trial
from evals.tuning.space import Setting
from greenllm.intervals import Estimate


def test_arms_take_turns_and_change_places() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3, progress=lambda _: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_ratios_are_paired_by_round() -> None:
    ratio = paired_ratio([1.0, 20.0, 300.0], [2.0, 10.0, 100.0])
    assert ratio["median"] == 2.0
    assert (ratio["q1"], ratio["q3"]) == (0.5, 3.0)


def test_a_bench_engine_makes_the_tokens_it_is_asked_for() -> None:
    bench = load_bench("bundled", threads=1)
    engine = bench.engine(bench.account())
    engine.add_request(story_request(bench.tokenizer, "r", 5))
    tokens = []
    while engine.has_work:
        tokens += engine.step()
    (receipt,) = engine.drain()
    assert len(tokens) == receipt.completion_tokens == 5
    assert receipt.total_j is not None
    assert receipt.total_j == pytest.approx((receipt.active_j or 0) + (receipt.idle_j or 0))
    assert receipt.total_j > 0


def test_the_quartiles_of_few_rounds_do_not_leave_them() -> None:
    assert paired_ratio([2.0, 4.0], [1.0, 1.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert paired_ratio([5.0], [2.0]) == {"median": 2.5, "q1": 2.5, "q3": 2.5}
    four = paired_ratio([1.0, 2.0, 3.0, 4.0], [1.0] * 4)
    assert four == {"median": 2.5, "q1": 1.25, "q3": 3.75}


def cell(*joules_per_token: float) -> Rounds:
    """Rounds of one answer with ten tokens."""
    return Rounds(
        [
            Result(
                Continuing(1, 10),
                [Example(Score(1.0), Cost(10 * joules, None, None, 0, 10), 1.0)],
                2.0,
            )
            for joules in joules_per_token
        ]
    )


def test_a_technique_is_beside_plain_decoding_and_its_own_precision() -> None:
    cells = {
        ("none", "off", 1): cell(1.0, 2.0, 3.0),
        ("none", "auto", 1): cell(2.0, 4.0, 6.0),
        ("int8", "off", 1): cell(0.5, 1.0, 1.5),
        ("int8", "auto", 1): cell(0.25, 0.25, 1.5),
    }
    found = figures(cells, ["none", "int8"], has_quality=True)
    assert found["none"]["auto"]["1"]["joules_over_plain"]["median"] == 2.0
    guessing = found["int8"]["auto"]["1"]
    assert guessing["joules_over_plain"]["median"] == 0.25
    assert guessing["joules_over_off"]["median"] == 0.5
    assert guessing["joules_per_token"] == 0.25
    assert guessing["tokens_per_s"] == 5.0
    assert guessing["quality"]["value"] == 1.0


def test_training_is_shared_out_among_right_notes() -> None:
    task = {
        "value": {"value": 0.5, "examples": 10, "low": 0.2, "high": 0.8},
        **{"energy_j": 4.0, "grams": None, "joules_per_example": 0.4, "p95_s": 1.0},
    }
    side = side_of(task, spent_j=6.0)
    assert side["beside_j"] == 2.0
    found = balance(100.0, side)
    assert found["joules_per_right_note_at"]["100"] == pytest.approx((1.0 + 0.4) / 0.5)
    assert found["notes_that_cost_as_much"] == 250
    unknown = side_of({**task, "energy_j": None, "joules_per_example": None}, spent_j=6.0)
    assert unknown["beside_j"] is None
    assert set(balance(100.0, unknown)["joules_per_right_note_at"].values()) == {None}


def test_winners_answer_side_by_side_once_more_than_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = iter([(9.0, 1.0), (1.0, 2.0), (3.0, 2.0)])

    class MadeUp:
        def __init__(self, *args: object, **options: object) -> None: ...

        def measure(self, settings: list[Setting], examples: int) -> list[Trial]:
            nothing = Estimate(1.0, 1.0, 1.0, 1)
            return [
                Trial(setting, 1, nothing, cost, 0.1, 0.0)
                for setting, cost in zip(settings, next(costs), strict=True)
            ]

        def close(self) -> None: ...

    monkeypatch.setattr("evals.studies.tuned.ServerBench", MadeUp)
    settings = [Setting((("threads", "1"),)), Setting((("threads", "2"),))]
    assert side_by_side("bundled", settings, 4, rounds=2) == [0.5, 1.5]
