"""What a note costs with the training in it."""

from __future__ import annotations

import pytest

from evals.studies.sustainability import balance, side_of


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
