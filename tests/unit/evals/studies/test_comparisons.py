"""Small studies compare what was measured side by side, and share out what was spent once."""

from __future__ import annotations

from typing import Any

import pytest

from evals.evaluation import ExampleResult, TaskResult
from evals.served import QueryCost
from evals.studies import techniques
from evals.studies.finetuning import figures, summary, tokens_per_s
from evals.studies.sustainability import balance, side_of
from evals.studies.tuned import side_by_side
from evals.tasks.base import Score
from evals.tuning.search import Trial
from evals.tuning.space import Setting
from greenllm.intervals import Interval


def cell(*joules_per_token: float) -> list[TaskResult]:
    """Rounds of one answer with ten tokens."""
    return [
        TaskResult(
            techniques.Continuing(1, 10),
            [ExampleResult(Score(1.0), QueryCost(10 * joules, None, None, 0, 10), 1.0)],
            2.0,
        )
        for joules in joules_per_token
    ]


def test_a_technique_is_beside_plain_decoding_and_its_own_precision() -> None:
    cells = {
        ("none", "off", 1): cell(1.0, 2.0, 3.0),
        ("none", "auto", 1): cell(2.0, 4.0, 6.0),
        ("int8", "off", 1): cell(0.5, 1.0, 1.5),
        ("int8", "auto", 1): cell(0.25, 0.25, 1.5),
    }
    found = techniques.figures(cells, ["none", "int8"], has_quality=True)
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
            nothing = Interval(1.0, 1.0, 1.0, 1)
            return [
                Trial(setting, 1, nothing, cost, 0.1, 0.0)
                for setting, cost in zip(settings, next(costs), strict=True)
            ]

        def close(self) -> None: ...

    monkeypatch.setattr("evals.studies.tuned.ServerBench", MadeUp)
    settings = [Setting((("threads", "1"),)), Setting((("threads", "2"),))]
    assert side_by_side("bundled", settings, 4, rounds=2) == [0.5, 1.5]


def report(joules: float, loss: float) -> dict[str, Any]:
    phase = {"total_j": joules, "active_j": joules / 2, "duration_s": 4.0}
    return {
        "measures": {
            "running_time_s": 8.0,
            "model": {"trained": 10, "output_bytes": 2_000_000},
            "energy": {"total_j": 2 * joules, "metering_s": 0.08, "by_phase": {"training": phase}},
        },
        "training": {"tokens": 100},
        "quality": {
            "validation_loss": {"after": {"value": loss}},
            "exact_match": {"after": None},
            "probe_loss_change": {"value": 0.25},
        },
        "prediction": {"ratio": 1.1},
    }


def test_figures_are_those_of_the_report() -> None:
    found = figures(report(40.0, 0.5))
    assert found["training_j"] == 40
    assert found["total_j"] == 80
    assert found["output_mb"] == 2
    assert found["metering_share"] == pytest.approx(0.01)
    assert found["exact_match"] is None
    assert tokens_per_s(report(40.0, 0.5)) == 25


def test_methods_are_compared_seed_by_seed() -> None:
    full = [figures(report(joules, 0.5)) for joules in (100.0, 200.0, 300.0)]
    lora = [figures(report(joules, 0.6)) for joules in (50.0, 100.0, 90.0)]
    found = summary({"full": full, "lora": lora})
    assert found["full"]["joules_over_first"]["median"] == 1
    assert found["lora"]["joules_over_first"]["median"] == 0.5
    assert found["lora"]["training_j"] == 90
    assert found["lora"]["exact_match"] is None
