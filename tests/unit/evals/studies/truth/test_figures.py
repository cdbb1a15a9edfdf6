"""Figures of receipts against the truth, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from evals.studies.truth.figures import by_class
from evals.studies.truth.processor import TrueBill
from evals.studies.truth.simulate import Outcome
from evals.studies.truth.targets import TARGETS, judged
from greenllm.energy.receipt import Receipt


def outcome(active_j: float | None, *, together: int = 2, **fields: Any) -> Outcome:
    """A request of 10 active and 5 idle joules, and a receipt that says something else."""
    known: dict[str, Any] = {
        "idle_j": 5.0,
        "uncertainty": 0.1,
        "attribution": "ok",
        "outcome": "completed",
        **fields,
    }
    receipt = Receipt(
        "r", "m", created_s=0.0, status="final", method="x", measured=True, active_j=active_j,
        **known,
    )  # fmt: skip
    return Outcome("short", TrueBill(10.0, 5.0, 3, together), receipt)


def test_errors_of_both_signs_cancel_in_the_bias_only() -> None:
    found = by_class([outcome(8.0), outcome(12.0), outcome(11.5)])["all"]
    assert found["requests"] == 3
    assert found["active_bias"] == pytest.approx(0.05)
    assert found["active_mape"] == pytest.approx((0.2 + 0.2 + 0.15) / 3)
    assert found["idle_bias"] == 0.0
    # 2 J of 13, 2 of 17 and 1.5 of 16.5 are beyond, beyond and within a tenth.
    assert found["coverage"] == pytest.approx(1 / 3)


def test_classes_are_of_what_really_ran() -> None:
    found = by_class(
        [
            outcome(10.0, together=1),
            outcome(10.0, outcome="aborted"),
            outcome(10.0, attribution="degraded"),
            Outcome("long", TrueBill(), None),
        ]
    )
    counts = {name: row["requests"] for name, row in found.items()}
    assert counts == {
        "all": 3, "short": 3, "alone": 1, "batched": 2, "aborted": 1, "ok": 2, "not ok": 1
    }  # fmt: skip


def test_a_receipt_without_joules_is_unknown_and_not_zero() -> None:
    assert by_class([outcome(None)])["all"] == {"requests": 1, "unknown": 1}
    found = by_class([outcome(None), outcome(10.0)])["all"]
    assert (found["unknown"], found["active_bias"]) == (1, 0.0)


def test_targets_are_judged_by_their_worst_arm() -> None:
    def group(requests: int = 200, **figures: float) -> dict[str, Any]:
        return {"requests": requests, **figures}

    def arm(mape: float) -> dict[str, Any]:
        return {"classes": {"all": group(active_mape=mape), "long": group(active_mape=9.0)}}

    rows = judged(
        {"100ms/a": arm(0.04), "100ms/b": arm(0.06), "1s/a": arm(0.1)},
        {
            "100ms": {"all": group(coverage=0.9), "long": group(coverage=0.99)},
            "1s": {"all": group(coverage=0.88), "aborted": group(requests=20, coverage=0.1)},
        },
    )
    found = {row["target"]: (row["worst"], row["of"], row["met"]) for row in rows}
    assert found == {
        "active MAPE, 100ms, all: ≤ 5%": (0.06, "100ms/b, all", False),
        "active MAPE, 1s, all: ≤ 15%": (0.1, "1s/a, all", True),
        "coverage, 100ms, each class: 87% to 93%": (0.99, "100ms, long", False),
        "coverage, 1s, each class: 87% to 93%": (0.88, "1s, all", True),
    }


def test_each_target_has_a_name_of_its_own() -> None:
    assert len({str(target) for target in TARGETS}) == len(TARGETS)
