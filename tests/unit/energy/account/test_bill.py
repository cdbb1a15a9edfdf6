"""A bill becomes a receipt: what it adds, how certain it is, and how good its split was."""

import math

import pytest

from greenllm.core import AdapterRef, Approximation, Request, SamplingParams
from greenllm.energy.account.attribution import CoefficientFit, Coefficients, Work
from greenllm.energy.account.bill import Bill, TokenCounts
from greenllm.energy.meters.protocol import NullMeter, ReplayMeter
from greenllm.energy.receipt import Receipt
from tests.unit.energy.rig import make_rig

METER = ReplayMeter([], method="measured:x", period_s=0.1, uncertainty=0.05)
COUNTS = TokenCounts(cached=1, generated=4)
WORK = Work(steps=1.0, rows=2.0, flops=30.0, kv_bytes=4.0, residence_s=0.5)


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


def _fit(num_windows: int = 20, relative_error: float = 0.0) -> CoefficientFit:
    fit = CoefficientFit(Coefficients(1.0, 0.5, 0.1, 0.25))
    fit.num_windows, fit.relative_error = num_windows, relative_error
    return fit


def _close(bill: Bill, seconds: float = 2.0) -> Bill:
    bill.close(METER, "completed", closed_s=10.0 + seconds, counts=COUNTS)
    return bill


def test_phases_and_idle_add_up_to_the_total() -> None:
    bill = _bill()
    bill.add("prefill", WORK, active_j=3.0, idle_j=0.5, predicted_j=3.1)
    bill.add("decode", WORK, active_j=1.0, idle_j=0.25, predicted_j=1.0)
    bill.add("decode", WORK, active_j=2.0, idle_j=0.25, predicted_j=2.0)
    assert (bill.active_j, bill.idle_j, bill.total_j) == (6.0, 1.0, 7.0)
    receipt = _close(bill).final(METER, _fit())
    assert (receipt.prefill_j, receipt.decode_j) == (3.0, 3.0)
    assert (receipt.active_j, receipt.idle_j, receipt.total_j) == (6.0, 1.0, 7.0)
    assert (receipt.flops, receipt.resident_s) == (90.0, 1.5)


def test_a_receipt_names_the_request_and_the_meter() -> None:
    receipt = _close(_bill()).final(METER, _fit())
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
    receipt = bill.final(METER, _fit())
    assert (receipt.approximate, receipt.mean_layers, receipt.agreement_target) == (True, 6.5, 0.95)
    assert (receipt.drafted_tokens, receipt.accepted_tokens) == (3, 2)


def test_an_unknown_meter_leaves_everything_unknown() -> None:
    bill = _bill()
    bill.close(NullMeter(lambda: 0.0), "completed", closed_s=12.0, counts=TokenCounts(generated=1))
    receipt = bill.final(NullMeter(lambda: 0.0), _fit())
    assert receipt.status == "unmetered"
    assert receipt.total_j is receipt.flops is receipt.uncertainty is None


def test_an_open_bill_is_no_receipt() -> None:
    with pytest.raises(RuntimeError, match="request r is still open"):
        _bill().final(METER, _fit())
    with pytest.raises(RuntimeError, match="still open"):
        _bill().provisional(_fit(), {}, 0.0)


def test_a_provisional_receipt_adds_a_prediction_to_what_was_counted() -> None:
    bill = _bill()
    bill.add("prefill", WORK, active_j=3.0, idle_j=0.5, predicted_j=3.0)
    receipt = _close(bill).provisional(_fit(), {"decode": WORK}, idle_w=4.0)
    predicted_j = 1.0 + 0.5 * 2 + 0.1 * 30 + 0.25 * 4
    assert receipt.status == "provisional"
    assert receipt.prefill_j == 3.0
    assert receipt.decode_j == pytest.approx(predicted_j)
    assert receipt.idle_j == pytest.approx(0.5 + 4.0 * 0.5)
    assert receipt.total_j == pytest.approx(3.0 + predicted_j + 2.5)
    assert (receipt.flops, receipt.resident_s) == (60.0, 1.0)
    assert (receipt.uncertainty, receipt.attribution) == (1.0, "degraded")


def test_without_a_metered_window_a_provisional_receipt_knows_no_joules() -> None:
    receipt = _close(_bill()).provisional(_fit(num_windows=0), {"decode": WORK}, idle_w=4.0)
    assert receipt.total_j is receipt.decode_j is None
    assert receipt.duration_s == 2.0


@pytest.mark.parametrize(
    ("predicted_j", "num_windows", "quality"),
    [
        (10.0, 8, "ok"),
        (10.0, 7, "degraded"),
        (10.0 / 0.7, 8, "ok"),
        (10.0 / 0.69, 8, "degraded"),
        (10.0 / 1.4, 8, "ok"),
        (10.0 / 1.41, 8, "degraded"),
        (0.0, 8, "degraded"),
    ],
)
def test_the_split_is_good_when_meter_and_prediction_agree(
    predicted_j: float, num_windows: int, quality: str
) -> None:
    bill = _bill()
    bill.add("decode", WORK, active_j=10.0, idle_j=0.0, predicted_j=predicted_j)
    assert _close(bill).final(METER, _fit(num_windows)).attribution == quality


def test_nothing_was_split_where_nothing_was_active() -> None:
    bill = _bill()
    bill.add("decode", WORK, active_j=0.0, idle_j=1.0, predicted_j=1.0)
    assert _close(bill).final(METER, _fit()).attribution == "none"
    assert bill.alone == 0


def _uncertainty(shares_j: float, seconds: float, relative_error: float = 0.2) -> float:
    bill = _bill()
    bill.add("decode", WORK, active_j=8.0, idle_j=0.0, predicted_j=8.0)
    bill.shares_j = shares_j
    value = _close(bill, seconds).final(METER, _fit(relative_error=relative_error)).uncertainty
    assert value is not None
    return value


def test_uncertainty_is_counter_quantisation_and_split() -> None:
    quantisation = 1.645 * 0.1 / (math.sqrt(6) * 2.0)
    assert _uncertainty(8.0, 2.0) == pytest.approx(math.hypot(0.05, quantisation))
    split = 1.645 * 0.2 * 0.75
    assert _uncertainty(2.0, 2.0) == pytest.approx(math.hypot(0.05, quantisation, split))


def test_uncertainty_grows_with_company_and_shortness_and_ends_at_one() -> None:
    assert _uncertainty(8.0, 2.0) < _uncertainty(4.0, 2.0) < _uncertainty(0.5, 2.0)
    assert _uncertainty(8.0, 20.0) < _uncertainty(8.0, 0.2)
    assert _uncertainty(0.5, 0.0) == 1.0
    assert _uncertainty(8.0, 1e6) == pytest.approx(0.05)


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
    bill.add("prefill", WORK, active_j=3.0, idle_j=0.5, predicted_j=3.0)
    receipt = bill.if_lost(METER, _fit(), now_s=14.0)
    assert (receipt.status, receipt.outcome) == ("final", "lost")
    assert (receipt.active_j, receipt.idle_j, receipt.duration_s) == (3.0, 0.5, 4.0)
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (3, 0)
    assert (receipt.adapter, receipt.key, receipt.created_s) == ("lora", "k", 77.0)
    assert bill.closing is None, "it goes on if nothing happens"


def test_a_closed_bill_that_is_lost_keeps_its_counts_and_its_duration() -> None:
    bill = _close(_bill())
    bill.add("decode", WORK, active_j=2.0, idle_j=0.25, predicted_j=2.0)
    receipt = bill.if_lost(METER, _fit(), now_s=99.0)
    assert (receipt.status, receipt.outcome, receipt.duration_s) == ("final", "lost", 2.0)
    assert (receipt.cached_tokens, receipt.completion_tokens) == (1, 4)
    assert receipt.total_j == 2.25
    assert bill.final(METER, _fit()).outcome == "completed"


def test_a_bill_that_is_lost_under_an_unknown_meter_knows_no_joules() -> None:
    receipt = _bill().if_lost(NullMeter(lambda: 0.0), _fit(), now_s=12.0)
    assert (receipt.status, receipt.outcome, receipt.total_j) == ("unmetered", "lost", None)
