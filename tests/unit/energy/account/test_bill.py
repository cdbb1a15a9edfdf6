"""A bill becomes a receipt: what it adds, how certain it is, and how good its split was."""

from typing import Any

import pytest

from greenllm.core import AdapterRef, Approximation, Phase, Request, SamplingParams
from greenllm.energy.account.attribution import Work
from greenllm.energy.account.bill import Bill, Share, TokenCounts
from greenllm.energy.account.certainty import WindowErrors
from greenllm.energy.account.window import CpuShares, DomainWindow
from greenllm.energy.meters.protocol import NullMeter, ReplayMeter
from greenllm.energy.receipt import Receipt
from tests.unit.energy.rig import make_rig

METER = ReplayMeter([], method="measured:x", period_s=0.1, uncertainty=0.05)
COUNTS = TokenCounts(cached=1, generated=4)
WORK = Work(claim_j=1.0, flops=30.0, residence_s=0.5, present_s=1.0)


def _bill() -> Bill:
    request = Request(
        "r",
        ((1, 2, 3),),
        SamplingParams(),
        "m",
        endpoint="/v1/completions",
        key="k",
        adapter=AdapterRef("lora", "d"),
        created_s=77.0,
    )
    return Bill(request, opened_s=10.0)


def _add(
    bill: Bill,
    phase: Phase = "decode",
    *,
    active_j: float,
    idle_j: float = 0.0,
    predicted_j: float | None = None,
    of_active_j: float | None = None,
    strangers: float = 0.0,
    **errors: Any,
) -> None:
    """A window of a second, of which a part is the bill's; by default all."""
    share = Share("cpu", phase, WORK, active_j, idle_j, predicted_j or active_j)
    if predicted_j == 0:
        share = Share("cpu", phase, WORK, active_j, idle_j, 0.0)
    whole_j = active_j if of_active_j is None else of_active_j
    window = DomainWindow(10.0, 11.0, idle_j, whole_j, cpu=CpuShares(strangers))
    bill.add([share], window, WindowErrors(**errors))


def _close(bill: Bill, seconds: float = 2.0) -> Bill:
    bill.close(METER, "completed", closed_s=10.0 + seconds, counts=COUNTS)
    return bill


def test_phases_and_idle_add_up_to_the_total() -> None:
    bill = _bill()
    _add(bill, "prefill", active_j=3.0, idle_j=0.5, predicted_j=3.1)
    _add(bill, "decode", active_j=1.0, idle_j=0.25, predicted_j=1.0)
    _add(bill, "decode", active_j=2.0, idle_j=0.25, predicted_j=2.0)
    assert (bill.active_j, bill.idle_j, bill.total_j) == (6.0, 1.0, 7.0)
    bill.count(WORK)
    receipt = _close(bill).final(METER)
    assert (receipt.prefill_j, receipt.decode_j) == (3.0, 3.0)
    assert (receipt.active_j, receipt.idle_j, receipt.total_j) == (6.0, 1.0, 7.0)
    assert (receipt.flops, receipt.resident_s) == (30.0, 0.5), "counted once, not by domain"


def test_a_receipt_names_the_request_and_the_meter() -> None:
    receipt = _close(_bill()).final(METER)
    assert (receipt.request_id, receipt.model, receipt.adapter) == ("r", "m", "lora")
    assert (receipt.key, receipt.endpoint, receipt.created_s) == ("k", "/v1/completions", 77.0)
    assert (receipt.method, receipt.measured) == ("measured:x", True)
    tokens = (receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens)
    assert tokens == (3, 1, 4)
    assert (receipt.status, receipt.duration_s) == ("final", 2.0)
    assert (receipt.drafted_tokens, receipt.accepted_tokens) == (0, 0)
    early = (receipt.approximate, receipt.mean_layers, receipt.agreement_target)
    assert early == (False, None, None)


def test_a_receipt_says_how_much_of_the_model_was_asked() -> None:
    request = Request(
        "r", ((1,),), SamplingParams(), "m", approximation=Approximation(4, 0.7, 0.95)
    )
    bill = Bill(request, opened_s=10.0)
    counts = TokenCounts(generated=4, drafted=3, accepted=2)
    bill.close(METER, "completed", closed_s=12.0, counts=counts, mean_layers=6.5)
    receipt = bill.final(METER)
    assert (receipt.approximate, receipt.mean_layers, receipt.agreement_target) == (True, 6.5, 0.95)
    assert (receipt.drafted_tokens, receipt.accepted_tokens) == (3, 2)


def test_an_unknown_meter_leaves_everything_unknown() -> None:
    bill = _bill()
    bill.close(NullMeter(lambda: 0.0), "completed", closed_s=12.0, counts=TokenCounts(generated=1))
    receipt = bill.final(NullMeter(lambda: 0.0))
    assert receipt.status == "unmetered"
    assert receipt.total_j is receipt.flops is receipt.uncertainty is None


def test_an_open_bill_is_no_receipt() -> None:
    with pytest.raises(RuntimeError, match="request r is still open"):
        _bill().final(METER)
    with pytest.raises(RuntimeError, match="still open"):
        _bill().provisional({}, 0.0, Work())


def test_a_provisional_receipt_adds_a_prediction_to_what_was_counted() -> None:
    bill = _bill()
    _add(bill, "prefill", active_j=3.0, idle_j=0.5, predicted_j=3.0)
    bill.count(WORK)
    predicted_j = 6.0
    receipt = _close(bill).provisional({"decode": predicted_j}, 2.0, WORK)
    assert receipt.status == "provisional"
    assert receipt.prefill_j == 3.0
    assert receipt.decode_j == pytest.approx(predicted_j)
    assert receipt.idle_j == pytest.approx(2.5)
    assert receipt.total_j == pytest.approx(3.0 + predicted_j + 2.5)
    assert (receipt.flops, receipt.resident_s) == (60.0, 1.0)
    assert (receipt.uncertainty, receipt.attribution) == (1.0, "degraded")


def test_without_a_metered_window_a_provisional_receipt_knows_no_joules() -> None:
    receipt = _close(_bill()).provisional(None, 0.0, WORK)
    assert receipt.total_j is receipt.decode_j is None
    assert receipt.duration_s == 2.0


@pytest.mark.parametrize(
    ("predicted_j", "how", "quality"),
    [
        (10.0, {}, "ok"),
        (10.0, {"is_fitted": False}, "degraded"),
        (10.0 / 0.7, {}, "ok"),
        (10.0 / 0.69, {}, "degraded"),
        (10.0 / 1.4, {}, "ok"),
        (10.0 / 1.41, {}, "degraded"),
        (0.0, {}, "degraded"),
        (10.0, {"steps": 0.1}, "ok"),
        (10.0, {"steps": 0.3}, "degraded"),
        (10.0, {"strangers": 0.05}, "ok"),
        (10.0, {"strangers": 0.2}, "contended"),
    ],
)
def test_the_split_is_good_when_meter_and_prediction_agree(
    predicted_j: float, how: dict[str, Any], quality: str
) -> None:
    bill = _bill()
    _add(bill, active_j=10.0, predicted_j=predicted_j, of_active_j=20.0, **how)
    bill.count(WORK)
    assert _close(bill).final(METER).attribution == quality


def test_a_domain_that_was_lost_degrades_and_one_that_is_needed_leaves_no_joules() -> None:
    bill = _bill()
    _add(bill, active_j=10.0)
    bill.miss({"dram"}, {"gpu"})
    receipt = _close(bill).final(METER)
    assert (receipt.status, receipt.attribution, receipt.total_j) == ("final", "degraded", 10.0)
    bill.miss({"gpu"}, {"gpu"})
    receipt = bill.final(METER)
    assert (receipt.status, receipt.measured, receipt.total_j) == ("unmetered", False, None)


def test_nothing_was_split_where_nothing_was_active() -> None:
    bill = _bill()
    _add(bill, "decode", active_j=0.0, idle_j=1.0, predicted_j=1.0)
    assert _close(bill).final(METER).attribution == "none"
    assert bill.alone == 0


def test_strangers_take_their_part_of_the_machine() -> None:
    bill = _bill()
    _add(bill, active_j=6.0, idle_j=2.0, strangers=0.75)
    bill.count(WORK)
    receipt = _close(bill).final(METER)
    assert receipt.resident_s == pytest.approx(0.25 * WORK.residence_s)
    assert receipt.uncertainty is not None
    assert receipt.uncertainty > 1, "an interval is as wide as it is"


def test_the_interval_of_nothing_is_the_sensors() -> None:
    assert _close(_bill()).final(METER).uncertainty == 0.05


def test_a_request_with_two_phases_in_a_window_was_still_alone() -> None:
    rig = make_rig()
    rig.open("a")
    rig.account.charge(rig.batch(("a", 0, 4)), 0.1)
    rig.step(("a", 4, 1), cpu=5.0)
    rig.finish("a")
    bill = rig.account._bills["a"]
    assert rig.settle()[0].status == "final"
    assert bill.alone == pytest.approx(1.0)


def test_in_company_a_request_has_its_share_of_the_window() -> None:
    rig = make_rig()
    rig.open("a", "b", "c", "d")
    rig.step(*((name, 0, 4) for name in "abcd"), cpu=5.0)
    rig.finish(*"abcd")
    bill = rig.account._bills["c"]
    receipts: list[Receipt] = rig.settle()
    assert len(receipts) == 4
    assert bill.alone == pytest.approx(0.25)


def test_an_open_bill_that_is_lost_has_what_was_metered_so_far() -> None:
    bill = _bill()
    _add(bill, "prefill", active_j=3.0, idle_j=0.5, predicted_j=3.0)
    receipt = bill.if_lost(METER, now_s=14.0, has_worked=False)
    assert (receipt.status, receipt.outcome) == ("final", "lost")
    assert (receipt.active_j, receipt.idle_j, receipt.duration_s) == (3.0, 0.5, 4.0)
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (3, 0)
    assert (receipt.adapter, receipt.key, receipt.created_s) == ("lora", "k", 77.0)
    assert bill.closing is None, "it goes on if nothing happens"


def test_a_closed_bill_that_is_lost_keeps_its_counts_and_its_duration() -> None:
    bill = _close(_bill())
    _add(bill, "decode", active_j=2.0, idle_j=0.25, predicted_j=2.0)
    receipt = bill.if_lost(METER, now_s=99.0, has_worked=False)
    assert (receipt.status, receipt.outcome, receipt.duration_s) == ("final", "lost", 2.0)
    assert (receipt.cached_tokens, receipt.completion_tokens) == (1, 4)
    assert receipt.total_j == 2.25
    assert bill.final(METER).outcome == "completed"


def test_a_bill_that_is_lost_under_an_unknown_meter_knows_no_joules() -> None:
    receipt = _bill().if_lost(NullMeter(lambda: 0.0), now_s=12.0, has_worked=False)
    assert (receipt.status, receipt.outcome, receipt.total_j) == ("unmetered", "lost", None)
