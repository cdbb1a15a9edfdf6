"""The short form of the simulation: bounds that hold with a margin, and books that balance."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from evals.studies.truth.figures import by_class
from evals.studies.truth.simulate import Arm, Run, Simulation
from greenllm.core import Batch
from greenllm.energy.account.account import Account

SECONDS = 76.0
ARMS = ("1ms/additive", "100ms/prompts", "100ms/roofline", "1s/concave", "power/tiles16")


class Unfair(Account):
    """Charges each step to the first of its requests."""

    def charge(self, batch: Batch, duration_s: float, *rest: Any, **more: Any) -> None:
        super().charge(Batch(batch.chunks[:1]), duration_s, *rest, **more)


@cache
def served(arm: str, **how: Any) -> tuple[Simulation, Run]:
    meter, _, law = arm.partition("/")
    simulation = Simulation(Arm(meter, law), 0, SECONDS, **how)
    return simulation, simulation.run()


@pytest.mark.parametrize("arm", ARMS)
def test_true_bills_are_what_the_machine_used(arm: str) -> None:
    simulation, _ = served(arm)
    bills = simulation.processor.bills.values()
    assert sum(bill.active_j for bill in bills) == pytest.approx(simulation.machine.active_j)


@pytest.mark.parametrize("arm", ARMS)
def test_receipts_and_totals_are_what_the_meter_told(arm: str) -> None:
    _, run = served(arm)
    assert run.residual < 1e-6
    assert run.num_violations == 0
    assert all(outcome.receipt is not None for outcome in run.outcomes)


def test_glitches_leave_the_books_balanced() -> None:
    _, run = served("100ms/additive", num_glitches=4)
    assert run.residual < 1e-6
    assert run.num_violations == 0
    assert run.stats.num_sensor_errors > 0


def test_the_load_has_everything_in_it() -> None:
    _, run = served("1ms/additive")
    found = by_class(run.outcomes)
    for name in ("short", "medium", "long", "alone", "batched", "aborted", "ok"):
        assert found[name]["requests"] > 0
    stats = run.stats
    assert min(stats.num_preemptions, stats.cached_tokens, stats.drafted_tokens) > 0


def test_who_shares_steps_does_not_depend_on_the_meter() -> None:
    first, second = (served(arm)[1].outcomes for arm in ("1ms/additive", "100ms/additive"))
    assert [one.truth.num_steps for one in first] == [one.truth.num_steps for one in second]


@pytest.mark.parametrize(
    ("arm", "mape"),
    [("1ms/additive", 0.05), ("100ms/prompts", 0.1), ("100ms/roofline", 0.15), ("1s/concave", 0.2)],
)
def test_receipts_by_counters_are_near_the_truth(arm: str, mape: float) -> None:
    found = by_class(served(arm)[1].outcomes)
    assert found["all"]["unknown"] == 0
    assert abs(found["all"]["active_bias"]) < 0.03
    assert found["all"]["active_mape"] < mape
    assert abs(found["all"]["idle_bias"]) < 0.03
    assert abs(found["short"]["idle_bias"]) < 0.1


def test_a_wrong_split_shows() -> None:
    fair, unfair = (
        by_class(served("1ms/additive", **how)[1].outcomes) for how in ({}, {"account": Unfair})
    )
    assert unfair["batched"]["active_mape"] > 3 * fair["batched"]["active_mape"]
    assert unfair["batched"]["active_mape"] > 0.5
