"""Promises that do not hold are found and named; those that do are not."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from evals.chaos.asking import CUT, LEFT, UNREACHABLE, Question, Reply
from evals.chaos.faults import FAULTS, Fault
from evals.chaos.probe import Health, summarize
from evals.chaos.proof import Outcome, balances, judge, read_books
from evals.chaos.world import Phase
from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import Ledger
from tests.unit.energy.rig import make_receipt

QUESTION = Question("/v1/completions", {"prompt": "a"})
RIGHT = {QUESTION: b"right"}
CALM = FAULTS["calm"]


def judged(
    *replies: Reply,
    others: tuple[Reply, ...] = (),
    fault: Fault = CALM,
    rows: dict[str, int] | None = None,
    worst_s: float = 0.1,
) -> Outcome:
    phase = Phase("some", 0.0, 1.0, [(QUESTION, reply) for reply in replies], list(others))
    health = Health(1, worst_s, worst_s, worst_s)
    return judge(phase, fault, RIGHT, rows or {"a": 1, "b": 1}, health, 0.25)


GOOD = Reply(200, "a", b"right")


def test_what_is_right_breaks_nothing() -> None:
    outcome = judged(GOOD, others=(Reply(200, "b", trouble=LEFT),))
    assert outcome.broken == []
    assert (outcome.accepted, outcome.answered, outcome.wrong) == (2, 1, 0)
    assert outcome.troubles == {LEFT: 1}


@pytest.mark.parametrize(
    ("reply", "promise"),
    [
        (Reply(200, "b", b"wrong"), "answers are right: 1 were not"),
        (Reply(200, "b"), "answers are right: 1 were not"),
        (Reply(500, "b", trouble="500"), "bystanders get their answers: 1 ended with: 500"),
        (Reply(200, "b", trouble=CUT), "bystanders get their answers: 1 ended with: cut"),
        (Reply(200, "c", b"right"), "each accepted request has one row: 1 have not, such as c"),
    ],
)
def test_a_broken_promise_is_named(reply: Reply, promise: str) -> None:
    assert judged(GOOD, reply).broken == [promise]


def test_a_row_too_many_is_one_that_is_wrong() -> None:
    assert judged(GOOD, rows={"a": 2}).without_one_row == 1


def test_a_fault_permits_its_own_troubles_and_no_others() -> None:
    lost = Reply(trouble=UNREACHABLE)
    assert judged(GOOD, lost, fault=FAULTS["kill"]).broken == []
    assert judged(GOOD, lost, fault=FAULTS["pause"]).broken != []


def test_a_server_that_answers_nobody_is_found() -> None:
    assert judged().broken == ["bystanders get their answers: none was there"]


def test_health_is_bound_unless_the_fault_stops_the_process() -> None:
    (broken,) = judged(GOOD, worst_s=0.3).broken
    assert broken == "/health answers within 0.25 s: it took 0.300 s"
    assert judged(GOOD, worst_s=0.3, fault=FAULTS["pause"]).broken == []


def test_figures_of_health() -> None:
    assert summarize([]) == Health()
    waits_s = [number / 1000 for number in range(200)]
    health = summarize(waits_s)
    assert (health.count, health.p99_s, health.worst_s) == (200, 0.197, 0.199)
    assert health.median_s == pytest.approx(0.0995)


def test_books_that_were_moved_are_read_together(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    for path, name, totals in (
        (old, "a", Totals(meter_j=3.0, requests_j=3.0)),
        (new, "b", Totals(meter_j=6.0, requests_j=6.0)),
    ):
        with closing(Ledger(path)) as ledger:
            ledger.open_session("s", method="test", measured=True)
            ledger.record("s", [make_receipt(name)], totals, closed=path == new)
    books = read_books([old, new, tmp_path / "none.sqlite"])
    assert books.rows() == {"a": 1, "b": 1}
    (balance,) = balances(books)
    assert balance.broken == []
    assert balance.meter_j == 6.0
    (alone,) = balances(read_books([old]))
    assert alone.broken == ["session s is closed at the end"]
    (lacking,) = balances(read_books([new]))
    assert lacking.rows_residual == pytest.approx(0.5)
    assert "rows are off by 0.5" in lacking.broken[0]
