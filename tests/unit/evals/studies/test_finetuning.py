"""The fine-tuning benchmark: medians over seeds, joules beside the first method's."""

from typing import Any

import pytest

from evals.studies.finetuning import figures, page, summary, tokens_per_s


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
    table = page({"methods": found, "seeds": 3})
    assert "x first (range)" in table.splitlines()[0]
    row = next(line for line in table.splitlines() if line.startswith("| lora"))
    assert "| 0.50 (" in row
    assert "| +0.250 |" in row
