"""Joules by phase add up to what the meter counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.bill.phases import PHASES, PhaseAccount
from greenllm.energy.meters.protocol import NullMeter, Reading, ReplayMeter

STEP = st.tuples(
    st.sampled_from(PHASES),
    st.floats(0, 10),
    st.floats(0, 100),
    st.floats(0, 5),
    st.floats(0, 5),
)


def meter_of(steps: list[tuple[str, float, float, float, float]]) -> ReplayMeter:
    at_s = joules = own_s = machine_s = 0.0
    records = [Reading(0, {"cpu": 0.0}, 0.0, 0.0)]
    for _, seconds, more_j, own, others in steps:
        at_s, joules = at_s + seconds, joules + more_j
        own_s, machine_s = own_s + own, machine_s + own + others
        records.append(Reading(at_s, {"cpu": joules}, own_s, machine_s))
    return ReplayMeter(records, idle_w={"cpu": 1.0})


@given(st.lists(STEP, min_size=1, max_size=20))
def test_phases_and_what_others_used_are_all_there_was(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    account = PhaseAccount(meter_of(steps))
    for phase, *_ in steps:
        account._phase = phase  # as `begin`, which would read once more
        account.read()
    everything = account.spent(*PHASES)
    counted = sum(step[2] for step in steps)
    assert everything.total_j + everything.foreign_j == pytest.approx(counted)
    assert everything.duration_s == pytest.approx(sum(step[1] for step in steps))
    assert sum(everything.domains_j.values()) == pytest.approx(everything.total_j)
    for energy in account.by_phase().values():
        assert min(energy.active_j, energy.idle_j, energy.foreign_j) >= 0


def test_a_phase_within_a_phase_is_booked_apart() -> None:
    seconds = [Reading(i, {"cpu": 10.0 * i}) for i in range(5)]
    account = PhaseAccount(ReplayMeter(seconds, idle_w={"cpu": 4.0}))
    account.begin("training")
    with account.during("evaluation"):
        pass
    account.read()
    found = account.by_phase()
    assert [found[p].total_j for p in ("loading", "training", "evaluation")] == [10, 20, 10]
    assert found["evaluation"].idle_j == 4
    assert account.phase == "training"


def test_comparing_is_not_billed() -> None:
    account = PhaseAccount(ReplayMeter([Reading(i, {"cpu": 7.0 * i}) for i in range(3)]))
    with account.during("compare"):
        pass
    assert account.spent().total_j == 7
    assert account.spent("compare").total_j == 7


def test_a_sensor_that_fails_makes_the_sum_unknown_for_good() -> None:
    good = Reading(0, {"cpu": 0.0})
    account = PhaseAccount(ReplayMeter([good, None, Reading(2, {"cpu": 9.0})]))
    account.read()
    account.read()
    assert not account.is_known
    assert account.error is not None
    assert "failure" in account.error


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Reading(1, {"cpu": 5.0}, lost={"gpu": "fell off the bus"}), "gpu: fell off the bus"),
        (Reading(1, {"cpu": 5.0}), "gpu: it was not counted all the time"),
        (Reading(1, {"cpu": 5.0, "gpu": 9.0}, gaps=frozenset({"gpu"})), "its counter lost some"),
    ],
)
def test_a_part_of_the_joules_is_no_bill(now: Reading, why: str) -> None:
    account = PhaseAccount(ReplayMeter([Reading(0, {"cpu": 0.0, "gpu": 0.0}), now]))
    account.read()
    assert not account.is_known
    assert why in str(account.error)


def test_a_gpu_that_is_lost_from_the_start_leaves_no_bill() -> None:
    account = PhaseAccount(ReplayMeter([Reading(0, {"cpu": 0.0}, lost={"gpu": "mismatch"})]))
    assert not account.is_known
    assert account.error == "gpu: mismatch"


def test_a_counter_that_is_doubted_for_a_moment_leaves_the_bill_whole() -> None:
    doubted = Reading(1, {"cpu": 5.0}, gaps=frozenset({"cpu"}))
    account = PhaseAccount(ReplayMeter([Reading(0, {"cpu": 5.0}), doubted, Reading(2, {"cpu": 9})]))
    account.read()
    account.read()
    assert account.spent().total_j == 4.0


def test_without_a_meter_nothing_is_known() -> None:
    account = PhaseAccount(NullMeter(lambda: 0.0))
    account.read()
    assert not account.is_known
