"""When a fine-tune has paid for itself."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.bill.breakeven import AnswerCost, at_best, break_even
from finetune.bill.pages import markdown
from greenllm.intervals import wilson
from tests.unit.scorecard.samples import finetuned


def answers(joules: float, hits: int, size: int = 100) -> AnswerCost:
    solved = wilson(hits, size)
    assert solved is not None
    return AnswerCost(joules, solved)


def test_the_bill_is_divided_by_what_a_solved_request_saves() -> None:
    found = break_even(1000.0, answers(1.0, 10), answers(1.0, 50))
    assert (found.before_j, found.after_j) == pytest.approx((10.0, 2.0))
    assert found.requests == 125
    assert found.at_most is not None
    assert found.at_most > 125
    assert found.reason is None


def test_it_never_pays_where_a_solved_request_costs_no_less() -> None:
    found = break_even(1.0, answers(1.0, 50), answers(2.0, 60))
    assert found.requests is None
    assert found.reason is not None
    assert found.reason.startswith("never")


def test_without_a_solved_request_before_only_a_bound_is_known() -> None:
    found = break_even(1000.0, answers(1.0, 0), answers(1.0, 90))
    assert (found.requests, found.before_j) == (None, None)
    assert found.reason == "nothing was solved before training"
    high = answers(1.0, 0).solved.high
    assert found.at_most == pytest.approx(1000 / (1 / high - 1 / 0.826), rel=0.01)


def test_the_page_says_what_the_bound_rests_on() -> None:
    found = break_even(1000.0, answers(1.0, 0), answers(1.0, 90))
    page = markdown({**finetuned(), "break_even": asdict(found)})
    line = f"at most {found.at_most} solved requests, by the intervals of the shares."
    assert f"Break-even: nothing was solved before training, {line}" in page


def test_nothing_solved_after_training_never_pays() -> None:
    found = break_even(1.0, answers(1.0, 5), answers(0.1, 0))
    assert (found.requests, found.at_most, found.after_j) == (None, None, None)


@given(
    bill_j=st.floats(0.1, 1e6),
    joules=st.floats(0.01, 100.0),
    before=st.integers(1, 98),
    after=st.integers(1, 100),
)
def test_a_plan_is_never_above_what_comes_out(
    bill_j: float, joules: float, before: int, after: int
) -> None:
    best = at_best(bill_j, answers(joules, before))
    found = break_even(bill_j, answers(joules, before), answers(joules, after))
    assert best is not None
    if found.requests is not None:
        assert best <= found.requests
        assert after > before
