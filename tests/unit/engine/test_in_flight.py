"""What would be booked should the process die: open requests with the tokens that they have."""

from __future__ import annotations

import pytest

from tests.fake_engine import make_engine, make_request


def test_nothing_is_lost_where_nothing_is_open() -> None:
    receipts, totals = make_engine().if_lost()
    assert receipts == []
    assert totals.meter_j > 0
    assert totals.residual == pytest.approx(0, abs=1e-9)


def test_lost_requests_have_the_tokens_and_the_grams_that_they_have_so_far() -> None:
    engine = make_engine()
    first = make_request("first", [1, 2, 3, 4, 5], ignore_eos=True, max_tokens=20)
    engine.add_request(first)
    for _ in range(4):
        engine.step()
    engine.add_request(make_request("second", [1, 2, 3, 4, 5], n=2, ignore_eos=True))
    engine.step()
    engine.step()
    receipts, totals = engine.if_lost()
    one, two = receipts
    assert (one.request_id, two.request_id) == ("first", "second")
    assert {receipt.outcome for receipt in receipts} == {"lost"}
    assert (one.completion_tokens, one.cached_tokens) == (6, 0)
    assert (two.completion_tokens, two.cached_tokens) == (2 + 1, 4), "of both answers"
    for receipt in receipts:
        assert receipt.total_j is not None
        assert receipt.operational_g == pytest.approx(receipt.total_j * 360.0 / 3.6e6)
    booked_j = sum(receipt.total_j or 0.0 for receipt in receipts)
    assert totals.requests_j == pytest.approx(booked_j)
    assert totals.open_j == 0


def test_what_was_told_as_lost_ends_as_if_nothing_had_been_asked() -> None:
    engine = make_engine()
    engine.add_request(make_request("a", [1, 2], ignore_eos=True))
    while engine.has_work:
        engine.step()
        engine.if_lost()
    (receipt,) = engine.drain()
    assert (receipt.outcome, receipt.completion_tokens) == ("completed", 8)
    assert engine.stats().totals.requests_j == pytest.approx(receipt.total_j)


def test_a_request_that_waits_for_its_receipt_keeps_its_counts() -> None:
    engine = make_engine()
    engine.add_request(make_request("a", [1, 2], ignore_eos=True))
    while engine.has_work:
        engine.step()
    ((receipt,), _) = engine.if_lost()
    assert (receipt.outcome, receipt.completion_tokens) == ("lost", 8)
