"""One ledger for all replicas: sums hold, also when one of them dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import Ledger, Session
from greenllm.energy.receipt import Outcome, Receipt
from serving.cluster.keeper import Keeper, added

NOTHING: tuple[Receipt, ...] = ()


def receipt(name: str, joules: float = 3.0, **fields: Any) -> Receipt:
    outcome: Outcome = fields.pop("outcome", "completed")
    known = {"active_j": joules - 1.0, "idle_j": 1.0, "completion_tokens": 5, **fields}
    return Receipt(name, "m", outcome, 100.0, "final", "measured:x", True, **known)


def totals(requests_j: float, open_j: float = 0.0, idle_j: float = 2.0) -> Totals:
    meter_j = requests_j + open_j + idle_j
    return Totals(meter_j, idle_j=idle_j, requests_j=requests_j, open_j=open_j)


@dataclass
class House:
    """A keeper and its replicas; those in `dead` are not there any more."""

    path: Path
    dead: set[str] = field(default_factory=set)
    run: str = ""
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = self.another()

    def another(self) -> Keeper:
        """As Ray starts it again, with nothing but the file."""
        return Keeper(self.path, self.run, lambda name: name not in self.dead)

    def open(self, *sessions: str) -> None:
        for session in sessions:
            self.keeper.open_session(session, f"replica of {session}", "measured:x", True, 1000)

    def kill(self, session: str) -> list[str]:
        self.dead.add(f"replica of {session}")
        return self.keeper.reap()

    def read(self, ask: Callable[[Ledger], Any]) -> Any:
        ledger = Ledger(self.path, read_only=True)
        try:
            return ask(ledger)
        finally:
            ledger.close()

    def session(self, name: str) -> Session:
        (found,) = (one for one in self.read(Ledger.sessions) if one.session_id == name)
        assert isinstance(found, Session)
        return found

    def sum_j(self, session: str) -> float:
        return float(self.read(lambda ledger: ledger.session_sum_j(session)))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "new" / "folder" / "ledger.sqlite")
    yield made
    made.keeper.close()


def test_receipts_and_totals_of_several_replicas_are_in_one_ledger(house: House) -> None:
    house.open("s", "t")
    house.keeper.record("s", "replica of s", ([receipt("a")], totals(3.0)), NOTHING, False)
    house.keeper.record(
        "t", "replica of t", ([receipt("b", 4.0, key="k")], totals(4.0)), NOTHING, False
    )
    assert house.keeper.receipt("a") == receipt("a")
    assert house.keeper.receipt("b") == receipt("b", 4.0, key="k")
    assert house.keeper.receipt("c") is None
    assert (house.sum_j("s"), house.sum_j("t")) == (3.0, 4.0)
    assert house.keeper.totals() == totals(7.0, idle_j=4.0)
    (everything,) = house.keeper.sums(None, 0.0, 1e12, None)
    assert (everything.requests, everything.total_j) == (2, 7.0)
    (of_key,) = house.keeper.sums("key", 0.0, 1e12, "k")
    assert (of_key.group, of_key.requests) == ("k", 1)
    assert house.keeper.sums(None, 0.0, 50.0, None) == []


def test_a_session_says_how_it_was_metered(house: House) -> None:
    house.open("s")
    found = house.session("s")
    told = (found.method, found.measured, found.parameters, found.closed)
    assert told == ("measured:x", True, 1000, False)


def test_totals_count_sessions_that_are_closed(house: House) -> None:
    house.open("s", "t")
    house.keeper.record("s", "replica of s", ([], totals(3.0)), NOTHING, True)
    house.keeper.record("t", "replica of t", ([], totals(1.0)), NOTHING, False)
    house.keeper.record("t", "replica of t", ([], totals(4.0)), NOTHING, False)
    assert house.keeper.totals() == totals(7.0, idle_j=4.0)
    assert (house.session("s").closed, house.session("t").closed) == (True, False)


def test_what_a_dead_replica_had_open_is_booked_as_lost(house: House) -> None:
    house.open("s", "t")
    lost = [receipt("b", 5.0, outcome="lost"), receipt("c", 2.0, outcome="lost")]
    house.keeper.record("s", "replica of s", ([receipt("a")], totals(3.0, 7.0)), lost, False)
    assert house.kill("s") == ["b", "c"]
    for name in ("b", "c"):
        found = house.keeper.receipt(name)
        assert found is not None
        assert (found.status, found.outcome) == ("final", "lost")
    session = house.session("s")
    assert session.closed
    assert house.sum_j("s") == session.totals.requests_j == 10.0
    assert session.totals.residual == pytest.approx(0, abs=1e-9)
    assert house.keeper.totals() == totals(10.0)
    assert not house.session("t").closed


def test_who_is_alive_is_left_alone(house: House) -> None:
    house.open("s")
    house.keeper.record("s", "replica of s", ([], totals(0.0, 5.0)), [receipt("a", 5.0)], False)
    assert house.keeper.reap() == []
    assert house.keeper.receipt("a") is None
    assert house.keeper.totals().open_j == 5.0


def test_only_what_was_told_last_is_lost(house: House) -> None:
    house.open("s")
    lost = receipt("a", 2.0, outcome="lost")
    house.keeper.record("s", "replica of s", ([], totals(0.0, 2.0)), [lost], False)
    house.keeper.record("s", "replica of s", ([receipt("a", 3.0)], totals(3.0)), None, False)
    assert house.kill("s") == []
    assert house.keeper.receipt("a") == receipt("a", 3.0)
    assert house.sum_j("s") == house.session("s").totals.requests_j == 3.0


def test_a_receipt_that_was_provisional_becomes_final(house: House) -> None:
    house.open("s")
    early = replace(receipt("a", 9.0), status="provisional", http_status=200)
    lost = [receipt("a", 4.0, outcome="lost")]
    house.keeper.record("s", "replica of s", ([early], totals(0.0, 4.0)), lost, False)
    assert house.kill("s") == ["a"]
    found = house.keeper.receipt("a")
    assert found is not None
    assert (found.status, found.outcome, found.total_j) == ("final", "completed", 4.0)
    assert found.http_status == 200
    assert house.sum_j("s") == 4.0


def test_a_final_receipt_is_not_booked_twice(house: House) -> None:
    house.open("s")
    house.keeper.record("s", "replica of s", ([receipt("a")], totals(3.0)), NOTHING, False)
    late = [receipt("a", 3.0, outcome="lost")]
    house.keeper.record("s", "replica of s", ([], totals(3.0)), late, False)
    house.kill("s")
    assert house.keeper.receipt("a") == receipt("a")
    assert house.sum_j("s") == 3.0
    assert house.read(lambda ledger: len(ledger.receipts())) == 1


def test_a_replica_that_was_given_up_is_not_listened_to(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.open("s")
    lost = [receipt("a", outcome="lost")]
    house.keeper.record("s", "replica of s", ([], totals(0.0, 3.0)), lost, False)
    house.kill("s")
    house.keeper.record("s", "replica of s", ([receipt("b")], totals(99.0)), NOTHING, False)
    assert "session s has been given up" in caplog.text
    assert house.keeper.receipt("b") is None
    assert house.keeper.totals() == house.session("s").totals == totals(3.0)


def test_a_replica_that_has_closed_its_books_cannot_be_lost(house: House) -> None:
    house.open("s")
    house.keeper.record("s", "replica of s", ([receipt("a")], totals(3.0)), [receipt("b")], True)
    assert house.kill("s") == []
    assert house.keeper.receipt("b") is None
    assert house.session("s").totals == totals(3.0)


def test_a_replica_that_died_before_it_booked_anything_is_closed(house: House) -> None:
    house.open("s")
    assert house.kill("s") == []
    assert house.session("s").closed
    assert house.session("s").totals == Totals()


def test_a_newcomer_has_the_dead_closed_first(house: House) -> None:
    house.open("s")
    lost = [receipt("a", outcome="lost")]
    house.keeper.record("s", "replica of s", ([], totals(0.0, 3.0)), lost, False)
    house.dead.add("replica of s")
    house.open("t")
    assert house.session("s").closed
    assert house.keeper.receipt("a") == lost[0]


def test_closing_has_the_dead_closed_too(tmp_path: Path) -> None:
    house = House(tmp_path / "ledger.sqlite")
    house.open("s")
    lost = [receipt("a", outcome="lost")]
    house.keeper.record("s", "replica of s", ([], totals(0.0, 3.0)), lost, False)
    house.dead.add("replica of s")
    house.keeper.close()
    assert house.session("s").closed
    assert house.sum_j("s") == 3.0


def test_closing_closes_what_nobody_can_close_any_more(tmp_path: Path) -> None:
    """A keeper that has been started again does not know whom to ask whether he lives."""
    house = House(tmp_path / "ledger.sqlite", run="s-1")
    house.open("s-1-a", "s-2-b")
    for name in ("s-1-a", "s-2-b"):
        house.keeper.record(name, f"replica of {name}", ([], totals(0.0)), NOTHING, False)
    assert house.keeper.totals() == totals(0.0), "it is written"
    house.another().close()
    assert house.session("s-1-a").closed
    assert house.session("s-1-a").totals == totals(0.0)
    assert not house.session("s-2-b").closed, "another deployment's"


def test_adapters_are_remembered_until_they_are_unloaded(house: House) -> None:
    house.keeper.set_adapter("a", "/a")
    house.keeper.set_adapter("b", "/b")
    house.keeper.set_adapter("a", "/newer")
    house.keeper.set_adapter("b", None)
    house.keeper.set_adapter("unknown", None)
    found = house.keeper.adapters()
    assert found == {"a": "/newer"}
    found.clear()
    assert house.keeper.adapters() == {"a": "/newer"}


def test_totals_add_up_field_by_field() -> None:
    one, other = Totals(1, 2, 3, 4, 5, 6, 7), Totals(10, 20, 30, 40, 50, 60, 70)
    assert added(one, other) == Totals(11, 22, 33, 44, 55, 66, 77)


def test_a_keeper_that_is_started_again_goes_on_with_what_is_open(house: House) -> None:
    house.open("s", "t")
    house.keeper.record("t", "replica of t", ([receipt("a")], totals(3.0)), NOTHING, True)
    house.keeper.set_adapter("fox", "/fox")
    again = house.another()
    assert again.adapters() == {"fox": "/fox"}
    books = ([receipt("b", 4.0)], totals(4.0, 3.0))
    again.record("s", "replica of s", books, [receipt("c", outcome="lost")], False)
    again.record("t", "replica of t", ([receipt("d")], totals(9.0)), NOTHING, False)
    assert again.receipt("b") == receipt("b", 4.0)
    assert again.receipt("d") is None, "its books were closed"
    assert again.totals() == totals(7.0, 3.0, idle_j=4.0)
    house.dead.add("replica of s")
    assert again.reap() == ["c"]
    assert house.sum_j("s") == 7.0
    again.close()
    assert house.another().adapters() == {}


def test_a_keeper_that_is_started_again_knows_what_would_be_lost(tmp_path: Path) -> None:
    house = House(tmp_path / "ledger.sqlite", run="s-1")
    house.open("s-1-a")
    lost = [receipt("c", outcome="lost")]
    house.keeper.record("s-1-a", "replica of s-1-a", ([], totals(0.0, 3.0)), lost, False)
    assert house.keeper.totals().open_j == 3.0, "it is written"
    house.another().close()
    assert house.keeper.receipt("c") == lost[0]
    assert house.session("s-1-a").totals == totals(3.0)


def test_totals_are_those_of_one_deployment(tmp_path: Path) -> None:
    house = House(tmp_path / "ledger.sqlite", run="s-1")
    house.open("s-1-a", "s-2-b")
    for name in ("s-1-a", "s-2-b"):
        books = ([receipt(name)], totals(3.0))
        house.keeper.record(name, f"replica of {name}", books, NOTHING, False)
    assert house.keeper.totals() == totals(3.0)
    house.keeper.close()
