"""Who pays in which situation: sharing, idle, load, sensors that fail, receipts in time."""

import logging

import pytest

from greenllm.core import AdapterRef, DraftPass, Request, SamplingParams
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import TokenCounts
from greenllm.energy.account.idle import IdlePower
from greenllm.energy.account.totals import Label
from greenllm.energy.meters.protocol import NullMeter, Reading, ReplayMeter, SensorError
from greenllm.shape import ModelShape
from tests.unit.energy.rig import make_rig

SHAPE = ModelShape(1000, 300, 2, 16, 64)


def test_a_lone_request_pays_for_its_window() -> None:
    rig = make_rig(idle_w={"cpu": 4.0})
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.5, cpu=10.0)
    rig.step(("a", 4, 1), seconds=0.5, cpu=6.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.outcome) == ("final", "completed")
    assert receipt.idle_j == pytest.approx(4.0)
    assert receipt.active_j == pytest.approx(12.0)
    assert receipt.prefill_j + receipt.decode_j == pytest.approx(receipt.active_j)
    assert receipt.domains_j == pytest.approx({"cpu": 16.0})
    assert receipt.resident_s == pytest.approx(1.0)
    assert receipt.duration_s == pytest.approx(1.0)
    assert (receipt.cached_tokens, receipt.completion_tokens) == (1, 2)
    assert receipt.flops == SHAPE.flops(0, 4, 1) + SHAPE.flops(4, 1, 1)
    assert rig.totals.requests_j == pytest.approx(16.0)
    assert rig.account.if_lost()[0] == []


def test_sixteen_equal_requests_pay_a_sixteenth_each() -> None:
    rig = make_rig(idle_w={"cpu": 8.0})
    names = [f"r{i}" for i in range(16)]
    rig.open(*names)
    rig.step(*((name, 0, 4) for name in names), cpu=16.0)
    rig.finish(*names)
    receipts = rig.settle()
    assert [receipt.total_j for receipt in receipts] == pytest.approx([1.0] * 16)
    assert [receipt.resident_s for receipt in receipts] == pytest.approx([0.1 / 16] * 16)


def test_who_joins_late_pays_less() -> None:
    rig = make_rig(period_s=0.05)
    rig.open("early", "late")
    rig.step(("early", 0, 4), cpu=5.0)
    for at in range(4, 8):
        rig.step(("early", at, 1), ("late", at, 1), cpu=5.0)
    rig.finish("early", "late")
    rig.drain()
    early, late = rig.finals["early"], rig.finals["late"]
    assert late.total_j < early.total_j
    assert early.total_j + late.total_j == pytest.approx(25.0)


def test_who_opens_into_a_running_window_pays_only_for_its_own_steps() -> None:
    rig = make_rig(period_s=10.0)
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.4, cpu=4.0)
    rig.open("b")
    rig.step(("a", 4, 1), ("b", 0, 1), seconds=0.2, cpu=2.0)
    rig.finish("a", "b")
    rig.drain()
    assert rig.finals["b"].resident_s == pytest.approx(0.1)
    assert rig.finals["a"].resident_s == pytest.approx(0.5)
    assert rig.finals["b"].total_j < rig.finals["a"].total_j


def test_one_request_with_two_sequences_claims_a_step_once() -> None:
    rig = make_rig()
    rig.open("two", "one")
    rig.step(("two", 4, 1), ("two", 5, 1), ("one", 4, 1), cpu=3.0)
    rig.finish("two", "one")
    rig.settle()
    assert rig.finals["two"].resident_s == pytest.approx(rig.finals["one"].resident_s)
    assert rig.finals["one"].total_j < rig.finals["two"].total_j < 2 * rig.finals["one"].total_j


def test_a_request_that_never_ran_costs_nothing() -> None:
    rig = make_rig()
    rig.open("waiting")
    rig.spend(0.2, cpu=3.0)
    rig.finish("waiting", outcome="aborted")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.outcome) == ("final", "aborted")
    assert (receipt.total_j, receipt.attribution) == (0.0, "none")
    assert rig.totals.idle_j == pytest.approx(3.0)


def test_aborted_work_stays_on_the_request() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), cpu=7.0)
    rig.finish("a", outcome="failed")
    (receipt,) = rig.settle()
    assert (receipt.outcome, receipt.total_j) == ("failed", pytest.approx(7.0))


def test_energy_before_serving_is_load_and_after_it_idle() -> None:
    rig = make_rig(serving=False)
    rig.spend(3.0, cpu=30.0)
    rig.account.start_serving()
    assert rig.totals.load_j == pytest.approx(30.0)
    rig.spend(2.0, cpu=5.0)
    rig.open("a")
    assert rig.totals.idle_j == pytest.approx(5.0)
    assert rig.totals.open_j == 0


def test_a_rehearsal_is_load_and_teaches_the_fit() -> None:
    rig = make_rig(serving=False)
    rig.open("made-up")
    batch = rig.batch(("made-up", 0, 4))
    rig.account.rehearse(batch, lambda _: rig.spend(0.5, cpu=9.0))
    assert rig.totals.load_j == pytest.approx(9.0)
    assert rig.account.learnt.num_windows == 1
    assert rig.account.learnt.fit("cpu").at(4.0) == pytest.approx(18.0)


def test_idle_power_is_learnt_between_requests() -> None:
    rig = make_rig()
    rig.meter.idle_w, rig.account.learnt.idle = None, IdlePower(None)
    rig.spend(10.0, cpu=30.0)
    rig.open("a")
    assert rig.account.learnt.idle.watts == pytest.approx({"cpu": 3.0})
    rig.step(("a", 0, 4), seconds=1.0, cpu=10.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.idle_j, receipt.active_j) == (pytest.approx(3.0), pytest.approx(7.0))


def test_strangers_have_their_part_of_the_work_and_of_the_floor() -> None:
    rig = make_rig(idle_w={"cpu": 2.0}, domains=("cpu", "gpu"))
    rig.meter.own_cpu_s, rig.meter.machine_cpu_s = 0.0, 0.0
    rig.spend(0.1, cpu=0.2, gpu=0.1)
    rig.account.drain()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.0, own_s=1.0, others_s=3.0, cpu=10.0, gpu=5.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert receipt.idle_j == pytest.approx(2.0 / 4)
    assert receipt.active_j == pytest.approx(8.0 / 4 + 5.0)
    assert receipt.domains_j == pytest.approx({"cpu": 2.5, "gpu": 5.0})
    assert receipt.attribution == "contended"
    assert rig.totals.unattributed_j == pytest.approx(1.5 + 6.0)


def test_phases_domains_and_labels_add_up() -> None:
    rig = make_rig(idle_w={"cpu": 2.0, "gpu": 5.0}, domains=("cpu", "gpu", "dram"))
    rig.open("a", model="m", adapter=AdapterRef("lora", "d"))
    rig.open("b", model="m")
    for at in range(4):
        rig.step(("a", at, 1), ("b", at + 3, 2), cpu=3.0, gpu=8.0, dram=0.5)
    rig.finish("a", "b")
    receipts = rig.settle()
    assert len(receipts) == 2
    for receipt in receipts:
        assert receipt.prefill_j + receipt.decode_j == pytest.approx(receipt.active_j)
        assert sum(receipt.domains_j.values()) == pytest.approx(receipt.total_j)
    spent = rig.account.spent_j
    assert sum(spent.values()) == pytest.approx(rig.totals.requests_j)
    adapted = sum(value for label, value in spent.items() if label.adapter == "lora")
    assert adapted == pytest.approx(rig.finals["a"].total_j)
    idle = sum(value for label, value in spent.items() if label.phase == "idle")
    assert idle == pytest.approx(sum(receipt.idle_j for receipt in receipts))
    assert spent[Label("gpu", "decode", "m", "")] > 0
    assert rig.finals["a"].decode_j == 0


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_late_sensor_makes_a_provisional_receipt_and_then_a_final_one(stands_still: bool) -> None:
    rig = make_rig(idle_w={"cpu": 1.0})
    rig.open("a")
    for at in range(4):
        rig.step(("a", at, 1), cpu=2.0)
    assert rig.drain() == []
    rig.meter.failing = not stands_still
    rig.step(("a", 4, 1))
    rig.finish("a")
    assert rig.settle() == []
    assert rig.account.settle_in_s() == pytest.approx(0.05)
    rig.spend(0.1)
    assert rig.settle() == [], "before receipt_wait_s"
    rig.spend(0.06)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.attribution) == ("provisional", "degraded")
    assert receipt.uncertainty == 1.0
    assert 8.0 < receipt.total_j < 20.0, "what was counted and a prediction of the last step"
    assert len(rig.account.if_lost()[0]) == 1
    assert rig.account.settle_in_s() == pytest.approx(1.0)
    rig.spend(1.0, cpu=3.0)
    rig.meter.failing = False
    (receipt,) = rig.settle()
    assert receipt.status == "final"
    assert receipt.idle_j == pytest.approx(0.5), "of its steps, not of the time after them"
    assert receipt.total_j + rig.totals.idle_j == pytest.approx(11.0)
    assert rig.totals.residual < 1e-9
    assert rig.account.num_sensor_errors == (0 if stands_still else 3)


def test_nothing_is_predicted_before_anything_was_metered() -> None:
    """The prior has no level: its numbers are FLOPs, not joules."""
    rig = make_rig()
    rig.meter.failing = True
    rig.open("a")
    rig.step(("a", 0, 4))
    rig.finish("a")
    rig.spend(0.2)
    (receipt,) = rig.settle()
    assert receipt.status == "provisional"
    assert receipt.total_j is None


def test_a_counter_that_stands_still_for_long_is_given_up() -> None:
    rig = make_rig()
    rig.open("warm")
    rig.step(("warm", 0, 4), cpu=3.0)
    rig.finish("warm")
    rig.settle()
    rig.open("a")
    rig.step(("a", 0, 4))
    rig.finish("a")
    rig.spend(61.0)
    (receipt,) = rig.settle()
    assert receipt.status == "provisional"
    assert receipt.total_j is not None
    assert receipt.total_j > 0
    assert rig.account.if_lost()[0] == []
    before_j = rig.totals.unattributed_j
    rig.spend(1.0, cpu=7.0)
    rig.open("b")
    assert rig.totals.unattributed_j - before_j == pytest.approx(7.0)
    assert rig.totals.residual < 1e-9


def test_what_was_metered_of_a_request_before_a_gap_is_nobodys() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.1, cpu=5.0)
    assert rig.totals.open_j == pytest.approx(5.0)
    rig.meter.failing = True
    rig.step(("a", 4, 1), seconds=0.1)
    rig.finish("a")
    rig.spend(61.0)
    (receipt,) = rig.settle()
    assert receipt.status == "provisional"
    assert (rig.totals.open_j, rig.totals.unattributed_j) == (0.0, pytest.approx(5.0))
    rig.meter.failing = False
    rig.spend(1.0, cpu=2.0)
    rig.settle()
    assert rig.totals.meter_j == pytest.approx(7.0)
    assert rig.totals.unattributed_j == pytest.approx(7.0)


def test_a_counter_that_was_unreadable_for_long_still_knows_the_joules() -> None:
    rig = make_rig(idle_w={"cpu": 2.0})
    rig.open("a")
    rig.meter.failing = True
    for at in range(30):
        rig.step(("a", at, 1), seconds=1.0, cpu=300.0)
    rig.finish("a")
    rig.spend(0.2, cpu=0.4)
    assert [receipt.status for receipt in rig.settle()] == ["provisional"]
    rig.meter.failing = False
    rig.spend(1.0, cpu=2.0)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.attribution) == ("final", "ok")
    assert receipt.total_j == pytest.approx(9000.0)
    assert rig.totals.unattributed_j == 0


def test_what_a_meter_does_not_know_is_on_no_bill() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.1, cpu=5.0)
    rig.meter.gaps = frozenset({"cpu"})
    rig.step(("a", 4, 1), seconds=1.1, cpu=900.0)
    rig.meter.gaps = frozenset()
    rig.step(("a", 5, 1), seconds=1.1, cpu=5.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.attribution) == ("provisional", "degraded")
    assert receipt.total_j < 100, "a prediction"
    assert rig.totals.unattributed_j == pytest.approx(910.0)
    assert rig.totals.residual < 1e-9


def test_a_window_with_a_glitch_is_degraded_and_counted() -> None:
    rig = make_rig()
    rig.open("before")
    rig.step(("before", 0, 4), cpu=5.0)
    rig.finish("before")
    rig.settle()
    rig.open("a")
    rig.meter.num_faults = {"cpu": 1}
    rig.step(("a", 0, 4), cpu=5.0)
    rig.finish("a")
    rig.settle()
    quality = {name: receipt.attribution for name, receipt in rig.finals.items()}
    assert quality == {"before": "ok", "a": "degraded"}
    assert (rig.finals["a"].total_j, rig.account.num_counter_faults) == (5.0, 1)


def test_a_process_that_was_stopped_does_not_pay_for_the_pause() -> None:
    rig = make_rig(idle_w={"cpu": 70.0})
    rig.open("a")
    rig.meter.paused_s = 3500.0
    rig.step(("a", 0, 4), seconds=3501.0, cpu=70.0 * 3501 + 5.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert receipt.status == "provisional"
    assert receipt.total_j is None
    assert rig.totals.unattributed_j == pytest.approx(70.0 * 3501 + 5.0)


def test_idle_power_after_the_end_of_a_request_is_not_its_own() -> None:
    """70 W idle, 300 W busy, a counter of 100 ms, one request of 50 ms alone."""
    rig = make_rig(period_s=0.1, idle_w={"cpu": 70.0})
    rig.spend(0.1, cpu=7.0)
    rig.open("a")
    rig.spend(0.05)
    rig.account.charge(rig.batch(("a", 0, 4)), 0.05)
    rig.finish("a")
    rig.spend(0.05, cpu=300.0 * 0.05 + 70.0 * 0.05)
    rig.settle()
    rig.spend(0.1, cpu=7.0)
    rig.settle()
    receipt = rig.finals["a"]
    assert (receipt.idle_j, receipt.total_j) == (pytest.approx(3.5), pytest.approx(15.0))


def test_a_tick_in_the_middle_of_a_step_divides_it() -> None:
    """Two requests one after the other, whose border no tick marks."""
    rig = make_rig(period_s=0.1, idle_w={"cpu": 10.0})
    rig.spend(0.1, cpu=1.0)
    rig.tick()
    rig.open("a", "b")
    for name, watts in (("a", 100.0), ("b", 40.0)):
        for at in range(15):
            rig.spend(0.01, cpu=watts * 0.01)
            rig.account.charge(rig.batch((name, at, 1)), 0.01)
            if rig.meter.now_s - rig.meter.ticked_s >= 0.1 - 1e-9:
                rig.tick()
            rig.settle()
        rig.finish(name)
    rig.spend(0.1, cpu=1.0)
    rig.tick()
    rig.settle()
    total_j = {name: receipt.total_j for name, receipt in rig.finals.items()}
    assert sum(total_j.values()) == pytest.approx(21.0)
    assert total_j["a"] == pytest.approx(15.0, rel=0.2)


def test_a_domain_that_is_lost_leaves_the_others_and_comes_back() -> None:
    rig = make_rig(domains=("cpu", "dram"))
    rig.meter.lost = {"dram": "it stands still"}
    rig.open("a")
    rig.step(("a", 0, 4), cpu=4.0, dram=2.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.attribution) == ("final", "degraded")
    assert receipt.domains_j == pytest.approx({"cpu": 4.0})
    rig.meter.lost = {}
    rig.open("b")
    rig.step(("b", 0, 4), cpu=4.0, dram=2.0)
    rig.finish("b")
    rig.settle()
    assert rig.totals.unattributed_j >= 2.0, "what it counted while it was lost is nobody's"
    assert rig.totals.residual < 1e-9


def test_where_everything_was_lost_for_a_while_the_counter_still_knows() -> None:
    rig = make_rig()
    rig.open("a")
    rig.meter.lost = {"cpu": "it fails"}
    rig.step(("a", 0, 4), seconds=20.0, cpu=400.0)
    rig.finish("a")
    rig.spend(0.2)
    assert [receipt.status for receipt in rig.settle()] == ["provisional"]
    rig.meter.lost = {}
    rig.spend(1.0, cpu=1.0)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.total_j) == ("final", pytest.approx(401.0))


def test_without_the_gpu_that_it_needs_a_request_has_no_joules() -> None:
    rig = make_rig(needs=("gpu",))
    rig.open("a")
    rig.step(("a", 0, 4), cpu=4.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.measured, receipt.total_j) == ("unmetered", False, None)


def test_idle_time_before_a_request_is_not_its_own_when_the_sensor_failed() -> None:
    rig = make_rig(idle_w={"cpu": 3.0})
    rig.meter.failing = True
    rig.spend(10.0, cpu=30.0)
    rig.open("a")
    rig.meter.failing = False
    rig.step(("a", 0, 4), seconds=2.0, cpu=10.0)
    rig.finish("a")
    rig.drain()
    receipt = rig.finals["a"]
    assert rig.totals.idle_j == pytest.approx(30.0)
    assert receipt.idle_j == pytest.approx(6.0)
    assert receipt.active_j == pytest.approx(4.0)


def test_a_window_waits_for_the_slowest_counter() -> None:
    rig = make_rig(domains=("cpu", "gpu"))
    rig.open("a")
    rig.step(("a", 0, 4), cpu=1.0)
    rig.finish("a")
    assert rig.settle() == []
    rig.spend(0.05, cpu=1.0, gpu=20.0)
    rig.drain()
    assert rig.finals["a"].domains_j["gpu"] == pytest.approx(20.0)


def test_a_step_within_one_tick_of_the_clock_waits_for_the_next_reading() -> None:
    rig = make_rig(period_s=0.05)
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.0)
    rig.finish("a")
    assert rig.settle() == []
    rig.spend(0.06, cpu=2.0)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.total_j) == ("final", pytest.approx(2.0))


def test_closing_the_books_gives_every_finished_request_a_receipt() -> None:
    rig = make_rig()
    rig.open("a", "b", "running")
    rig.step(("a", 0, 4), ("b", 0, 4), ("running", 0, 4), cpu=3.0)
    rig.finish("a")
    rig.meter.failing = True
    rig.step(("b", 4, 1), ("running", 4, 1))
    rig.finish("b")
    drained = {receipt.request_id: receipt.status for receipt in rig.drain()}
    assert {**drained, **{key: r.status for key, r in rig.finals.items()}}["b"] == "provisional"
    assert "running" not in drained
    assert rig.receipts.keys() == {"a", "b"}


def test_the_null_meter_gives_none_and_never_zero() -> None:
    now_s = 10.0
    account = Account(NullMeter(lambda: now_s), SHAPE, clock=lambda: now_s)
    account.start_serving()
    account.open(_request("a"))
    account.finish("a", "completed", TokenCounts(generated=3))
    (receipt,) = account.settle()
    assert (receipt.status, receipt.method, receipt.measured) == ("unmetered", "unknown", False)
    assert receipt.total_j is receipt.active_j is receipt.idle_j is None
    assert receipt.prefill_j is receipt.decode_j is receipt.avg_power_w is None
    assert receipt.completion_tokens == 3
    assert account.totals.residual == 0


def test_attribution_is_degraded_until_the_fit_has_seen_enough() -> None:
    rig = make_rig()
    qualities = []
    for number in range(10):
        names = (f"a{number}", f"b{number}")
        rig.open(*names)
        rig.step(*((name, 0, 4) for name in names), cpu=5.0)
        rig.finish(*names)
        qualities += [receipt.attribution for receipt in rig.settle()]
    assert qualities == ["degraded"] * 14 + ["ok"] * 6


def test_who_was_alone_pays_all_whatever_the_fit_knows() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), cpu=5.0)
    rig.finish("a")
    assert [receipt.attribution for receipt in rig.settle()] == ["ok"]


@pytest.mark.parametrize(
    ("scale", "quality"), [(0.5, "degraded"), (0.8, "ok"), (1.3, "ok"), (1.6, "degraded")]
)
def test_a_meter_far_from_the_prediction_degrades(scale: float, quality: str) -> None:
    rig = make_rig()
    for number in range(12):
        joules = 5.0 if number < 11 else 5.0 * scale
        names = (f"r{number}", f"s{number}")
        rig.open(*names)
        rig.step(*((name, 0, 4) for name in names), cpu=joules)
        rig.finish(*names)
        rig.settle()
    assert rig.finals["r10"].attribution == "ok"
    assert rig.finals["r11"].attribution == quality


def test_a_busy_window_closes_soon_even_if_nothing_is_due() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.06, cpu=6.0)
    assert rig.totals.open_j == 0
    assert rig.account.settle_in_s() is None
    rig.step(("a", 4, 1), seconds=0.06, cpu=6.0)
    assert rig.totals.open_j == pytest.approx(12.0)


def test_a_receipt_waits_one_period_of_the_counter() -> None:
    rig = make_rig(period_s=0.1)
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.04, cpu=2.0)
    rig.finish("a")
    assert rig.settle() == []
    assert rig.account.settle_in_s() == pytest.approx(0.1)
    rig.spend(0.101, cpu=1.0)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.total_j) == ("final", pytest.approx(3.0))


def test_joules_that_do_not_add_up_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A meter that breaks its contract and falls back."""
    rig = make_rig()
    rig.spend(1.0, cpu=-20.0)
    with caplog.at_level(logging.CRITICAL):
        rig.drain()
    assert rig.account.num_violations == 1
    assert "joules do not add up" in caplog.text


def test_an_account_needs_a_sensor_to_start_with() -> None:
    with pytest.raises(SensorError):
        Account(ReplayMeter([None]), SHAPE, clock=lambda: 0.0)


def test_an_open_request_cannot_be_billed() -> None:
    rig = make_rig()
    rig.open("a")
    with pytest.raises(RuntimeError, match="request a is still open"):
        rig.account._bills["a"].final(rig.meter)
    with pytest.raises(KeyError):
        rig.finish("unknown")


def test_a_recording_is_billed_like_a_meter() -> None:
    records = [Reading(float(i), {"cpu": 3.0 * i}) for i in range(4)]
    clock = iter(range(100))
    account = Account(ReplayMeter(records), SHAPE, clock=lambda: float(next(clock)) / 10)
    account.start_serving()
    account.open(_request("a"))
    account.finish("a", "completed", TokenCounts(generated=1))
    (receipt,) = account.drain()
    assert receipt.status == "final"
    assert account.totals.meter_j == account.totals.load_j + account.totals.idle_j == 9.0


def _request(name: str) -> Request:
    return Request(name, ((1, 2),), SamplingParams(), "m")


def test_idle_power_that_a_meter_gets_to_know_is_taken() -> None:
    rig = make_rig(idle_w={"cpu": 1.0})
    rig.open("a")
    rig.meter.idle_w = {"cpu": 3.0}
    rig.step(("a", 0, 4), seconds=1.0, cpu=10.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.idle_j, receipt.active_j) == (pytest.approx(3.0), pytest.approx(7.0))


def test_rest_learns_the_idle_power_of_sensors_before_serving() -> None:
    rig = make_rig(serving=False)
    rig.meter.idle_w, rig.account.learnt.idle = None, IdlePower(None)
    rig.account.rest(lambda seconds: rig.spend(seconds, cpu=4.0))
    assert rig.account.learnt.idle.watts == {"cpu": pytest.approx(8.0)}
    assert rig.totals.load_j == pytest.approx(4.0)


def test_rest_is_not_needed_where_idle_power_is_known() -> None:
    rig = make_rig(serving=False, idle_w={"cpu": 3.0})
    rested: list[float] = []
    rig.account.rest(rested.append)
    assert rested == []
    assert rig.account.learnt.idle.watts == {"cpu": 3.0}


def test_a_rehearsal_lasts_until_a_slow_counter_has_ticked() -> None:
    rig = make_rig(period_s=0.1, serving=False)
    rig.open("a")
    runs: list[object] = []

    def run(batch: object) -> None:
        runs.append(batch)
        rig.spend(0.05, cpu=1.0)

    assert rig.account.rehearse(rig.batch(("a", 4, 1)), run)
    assert len(runs) in (6, 7)
    assert rig.account.learnt.fit("cpu").at(1.0) == pytest.approx(20.0, rel=0.05)


def test_predicted_joules_are_not_called_measured() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.1, cpu=5.0)
    rig.meter.failing = True
    rig.step(("a", 4, 1), seconds=0.1)
    rig.finish("a")
    rig.spend(0.2)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.measured) == ("provisional", False)


def test_what_would_be_lost_is_every_open_bill_and_adds_up_to_the_meter() -> None:
    rig = make_rig(idle_w={"cpu": 2.0}, serving=False)
    rig.spend(1.0, cpu=9.0)
    rig.account.start_serving()
    rig.meter.own_cpu_s = rig.meter.machine_cpu_s = 0.0
    rig.account.drain()
    rig.spend(1.0, cpu=3.0)
    rig.open("done", "runs", "waits")
    rig.step(("done", 0, 4), ("runs", 0, 4), seconds=1.0, own_s=1.0, others_s=1.0, cpu=20.0)
    rig.meter.failing = True
    rig.finish("done")
    rig.settle()
    rig.meter.failing = False
    rig.step(("runs", 4, 1), seconds=1.0, own_s=1.0, cpu=5.0)
    rig.finish("runs")
    receipts, totals = rig.account.if_lost()
    named = {receipt.request_id: receipt for receipt in receipts}
    assert set(named) == {"runs", "waits"}, "the other is final"
    assert {(receipt.status, receipt.outcome) for receipt in receipts} == {("final", "lost")}
    assert totals.open_j == 0
    lost_j = sum(receipt.total_j for receipt in receipts)
    assert lost_j + rig.finals["done"].total_j == pytest.approx(totals.requests_j)
    booked_j = totals.requests_j + totals.idle_j + totals.load_j + totals.unattributed_j
    assert booked_j == pytest.approx(totals.meter_j)
    assert totals.meter_j == pytest.approx(37.0)
    assert min(totals.idle_j, totals.load_j, totals.unattributed_j, lost_j) > 0


def test_an_account_goes_on_after_it_was_asked_what_would_be_lost() -> None:
    rig = make_rig(idle_w={"cpu": 2.0})
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.5, cpu=8.0)
    for _ in range(2):
        receipts, totals = rig.account.if_lost()
        assert [receipt.total_j for receipt in receipts] == pytest.approx([8.0])
        assert (totals.requests_j, rig.totals.requests_j) == (pytest.approx(8.0), 0.0)
    rig.step(("a", 4, 1), seconds=0.5, cpu=6.0)
    rig.finish("a")
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.outcome) == ("final", "completed")
    assert (receipt.idle_j, receipt.active_j) == (pytest.approx(2.0), pytest.approx(12.0))
    assert rig.account.if_lost() == ([], rig.totals)


def test_what_would_be_lost_is_read_now_but_not_again_at_once() -> None:
    rig = make_rig()
    rig.open("a")
    rig.spend(0.2, cpu=8.0)
    rig.account.charge(rig.batch(("a", 0, 4)), 0.2)
    assert rig.account.if_lost()[1].meter_j == pytest.approx(8.0)
    rig.spend(0.05, cpu=3.0)
    rig.account.charge(rig.batch(("a", 4, 1)), 0.05)
    assert rig.account.if_lost()[1].meter_j == pytest.approx(8.0), "read a moment ago"
    rig.spend(0.06, cpu=1.0)
    assert rig.account.if_lost()[1].meter_j == pytest.approx(12.0)


def test_with_a_failing_sensor_what_would_be_lost_is_as_of_the_last_reading() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.0, cpu=8.0)
    rig.account.drain()
    rig.meter.failing = True
    rig.spend(1.0, cpu=5.0)
    ((receipt,), totals) = rig.account.if_lost()
    assert receipt.total_j == pytest.approx(8.0)
    assert (totals.meter_j, totals.requests_j) == (pytest.approx(8.0), pytest.approx(8.0))


def test_a_domain_that_is_lost_in_a_rehearsal_does_not_end_it() -> None:
    rig = make_rig(domains=("cpu", "gpu"), serving=False)
    rig.open("a")

    def run(_: object) -> None:
        rig.spend(0.5, cpu=9.0)
        rig.meter.lost = {"gpu": "it fails"}

    assert rig.account.rehearse(rig.batch(("a", 0, 4)), run)
    assert rig.account.learnt.fit("cpu").num_windows == 1
    assert rig.account.learnt.fit("gpu").num_windows == 0


def test_what_a_failing_sensor_had_counted_before_serving_is_load() -> None:
    rig = make_rig(serving=False)
    rig.meter.idle_w, rig.account.learnt.idle = None, IdlePower(None)
    rig.spend(20.0, cpu=4000.0)
    rig.meter.failing = True
    rig.account.start_serving()
    rig.meter.failing = False
    rig.spend(1.0, cpu=20.0)
    rig.drain()
    assert rig.totals.load_j == pytest.approx(4020.0)
    rig.spend(1.0, cpu=20.0)
    rig.drain()
    assert rig.totals.idle_j == pytest.approx(20.0)
    assert rig.account.learnt.idle.watts == {"cpu": pytest.approx(20.0)}


def test_rest_does_not_take_the_end_of_loading_for_idle_power() -> None:
    """A counter of 100 ms has ticked last while the model was loaded."""
    rig = make_rig(serving=False, period_s=0.1)
    rig.meter.idle_w, rig.account.learnt.idle = None, IdlePower(None)
    rig.tick()
    rig.spend(0.09, cpu=27.0)

    def wait(seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            rig.spend(0.01, cpu=0.7)
            if round((rig.meter.now_s - 1000.0) / 0.01) % 10 == 0:
                rig.tick()

    rig.account.rest(wait)
    assert rig.account.learnt.idle.watts == {"cpu": pytest.approx(70.0)}


def test_a_provisional_receipt_predicts_nothing_of_a_lost_domain() -> None:
    rig = make_rig(domains=("cpu", "gpu"))
    rig.open("a", "b")
    for at in range(10):
        rig.step(("a", 4 + at, 1), seconds=0.2, cpu=2.0, gpu=60.0)
    rig.meter.lost = {"gpu": "it fails"}
    rig.drain()
    rig.meter.failing = True
    rig.step(("b", 4, 1), seconds=0.2, cpu=2.0)
    rig.finish("b")
    rig.spend(0.2)
    (receipt,) = rig.settle()
    assert (receipt.status, receipt.total_j) == ("provisional", pytest.approx(2.0))


def test_joules_that_an_unmetered_receipt_does_not_tell_are_nobodys() -> None:
    """Those of requests are the sum of the final receipts, and of nothing else."""
    rig = make_rig(needs=("gpu",))
    rig.meter.lost = {"gpu": "no driver"}
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.0, cpu=30.0)
    rig.finish("a")
    rig.drain()
    assert (rig.finals["a"].status, rig.finals["a"].total_j) == ("unmetered", None)
    assert (rig.totals.requests_j, rig.totals.unattributed_j) == (0.0, pytest.approx(30.0))
    assert rig.account.spent_j == {}


def test_what_no_counter_has_counted_is_unknown_when_it_is_lost_and_not_zero() -> None:
    rig = make_rig(period_s=1.0)
    rig.tick()
    rig.open("a", "waits")
    rig.step(("a", 0, 4), seconds=0.3, cpu=30.0)
    receipts, _ = rig.account.if_lost()
    assert [(one.status, one.measured, one.total_j) for one in receipts] == [
        ("provisional", False, None),
        ("final", True, 0.0),
    ]


def test_what_was_given_up_is_not_final_when_it_is_lost() -> None:
    rig = make_rig()
    rig.open("a")
    rig.step(("a", 0, 4), seconds=0.3, cpu=30.0)
    rig.meter.failing = True
    for _ in range(210):
        rig.step(("a", 4, 1), seconds=0.3, cpu=30.0)
    (receipt,), totals = rig.account.if_lost()
    assert (receipt.status, receipt.measured, receipt.total_j) == ("provisional", False, None)
    assert (totals.requests_j, totals.open_j) == (0.0, pytest.approx(30.0))


def test_joules_before_a_glitch_are_on_the_bill_and_doubtful() -> None:
    rig = make_rig()
    rig.open("a")
    rig.meter.gaps = rig.meter.held = frozenset({"cpu"})
    rig.meter.num_faults = {"cpu": 1}
    rig.step(("a", 0, 4), seconds=1.1, cpu=10.0)
    rig.meter.gaps = rig.meter.held = frozenset()
    rig.finish("a")
    rig.drain()
    receipt = rig.finals["a"]
    assert (receipt.total_j, receipt.attribution) == (pytest.approx(10.0), "degraded")
    assert rig.totals.unattributed_j == 0


def test_a_domain_that_was_lost_for_a_moment_does_not_take_the_rest_of_the_bill_along() -> None:
    rig = make_rig(domains=("cpu", "dram"))
    rig.open("a")
    for at in range(10):
        rig.meter.lost = {"dram": "it fails"} if at == 5 else {}
        rig.step(("a", 4 + at, 1), seconds=1.0, cpu=30.0, dram=3.0)
    rig.finish("a")
    rig.drain()
    receipt = rig.finals["a"]
    assert (receipt.status, receipt.attribution) == ("final", "degraded")
    assert receipt.domains_j == pytest.approx({"cpu": 300.0}), "a part of the memory's is no figure"
    assert receipt.method.endswith("+unknown:dram")
    assert rig.totals.unattributed_j == pytest.approx(30.0), "the memory's"
    assert sum(rig.account.spent_j.values()) == pytest.approx(300.0)
    assert rig.totals.residual < 1e-9


def test_a_step_that_ended_before_its_drafting_has_its_own_place_in_time() -> None:
    """The counter has ticked where the step ended: what came after it is the draft's."""
    rig = make_rig(period_s=0.1)
    rig.tick()
    rig.open("a")
    rig.spend(0.3, cpu=30.0)
    rig.tick()
    rig.spend(0.2, cpu=10.0)
    batch = rig.batch(("a", 0, 4))
    rig.account.charge(batch, 0.3, ago_s=0.2)
    rig.account.charge_draft(batch.chunks, [DraftPass(batch.chunks, 2)], SHAPE, 0.2)
    rig.settle()
    rig.finish("a")
    rig.tick()
    rig.spend(0.2)
    rig.drain()
    receipt = rig.finals["a"]
    assert receipt.prefill_j == pytest.approx(30.0)
    assert receipt.draft_j == pytest.approx(10.0)


def test_what_a_lagging_counter_counts_after_work_is_not_idle_power() -> None:
    rig = make_rig()
    rig.meter.idle_w, rig.account.learnt.idle = None, IdlePower(None)
    rig.meter.lag_s = 1.0
    rig.open("a")
    rig.step(("a", 0, 4), seconds=1.0, cpu=100.0)
    rig.finish("a")
    rig.drain()
    rig.spend(0.9, cpu=90.0)
    rig.drain()
    assert rig.account.learnt.idle.watts == {}
    rig.spend(0.5, cpu=10.0)
    rig.drain()
    assert rig.account.learnt.idle.watts == {}, "it began within the lag"
    rig.spend(1.0, cpu=20.0)
    rig.drain()
    assert rig.account.learnt.idle.watts == {"cpu": pytest.approx(20.0)}


def test_a_meter_that_lags_is_not_read_more_often_than_it_tells_anything_new() -> None:
    rig = make_rig()
    rig.meter.lag_s = 2.0
    account = Account(rig.meter, SHAPE, clock=rig.meter.clock)
    rig.spend(1.0, cpu=5.0)
    account.settle()
    assert account.totals.meter_j == 0
    rig.spend(1.0, cpu=5.0)
    account.settle()
    assert account.totals.meter_j == pytest.approx(10.0)
