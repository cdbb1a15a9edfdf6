"""Where requests go: with their kin, into the fullest that is not full, and nowhere in vain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster import packing
from serving.cluster.packing import Packer, ReplicaLoad
from serving.cluster.wire import Ticket

NAMES = "abcde"
LOADS = st.dictionaries(
    st.sampled_from(NAMES), st.builds(ReplicaLoad, st.integers(0, 9), st.integers(1, 9))
)
KIN = st.lists(st.sampled_from(["session:1", "prefix:1", "model:1"]), unique=True).map(tuple)


def loads(**in_flight: int) -> dict[str, ReplicaLoad]:
    """Replicas that are full at four."""
    return {name: ReplicaLoad(count, 4) for name, count in in_flight.items()}


def rank(found: dict[str, ReplicaLoad], ticket: Ticket | None = None) -> str:
    return "".join(Packer().rank(found, ticket or Ticket()))


@pytest.mark.parametrize(("count", "full"), [(0, False), (3, False), (4, True), (5, True)])
def test_a_replica_is_full_where_another_request_saves_nothing(count: int, full: bool) -> None:
    assert ReplicaLoad(count, 4).is_full == full


def test_the_fullest_that_is_not_full_comes_first() -> None:
    assert rank(loads(a=0, b=3, c=1, d=4)) == "bcad"


def test_when_all_are_full_the_emptiest_comes_first() -> None:
    assert rank(loads(a=6, b=4, c=9)) == "bac"


def test_equal_replicas_are_ranked_by_name() -> None:
    assert rank(loads(b=1, c=1, a=1)) == "abc"


def test_each_replica_is_full_where_it_says() -> None:
    assert rank({"a": ReplicaLoad(3, 3), "b": ReplicaLoad(2, 8), "c": ReplicaLoad(5, 8)}) == "cba"


def test_kin_go_where_their_kin_went_while_it_is_not_full() -> None:
    packer, ticket = Packer(), Ticket(("session:s",))
    packer.note("a", ticket)
    assert packer.rank(loads(a=1, b=3), ticket) == ["a", "b"]
    assert packer.rank(loads(a=4, b=3), ticket) == ["b", "a"]
    assert packer.rank(loads(a=1, b=3), Ticket(("session:other",))) == ["b", "a"]


def test_the_strongest_tie_wins_and_the_others_come_next() -> None:
    packer = Packer()
    packer.note("a", Ticket(("model:m",)))
    packer.note("b", Ticket(("session:s",)))
    ticket = Ticket(("session:s", "prefix:none", "model:m"))
    assert packer.rank(loads(a=0, b=0, c=3), ticket) == ["b", "a", "c"]


def test_kin_follow_the_last_that_went_elsewhere() -> None:
    packer, ticket = Packer(), Ticket(("session:s",))
    packer.note("a", ticket)
    packer.note("b", ticket)
    assert packer.rank(loads(a=1, b=0), ticket) == ["b", "a"]


def test_a_home_that_is_gone_is_no_home() -> None:
    packer, ticket = Packer(), Ticket(("session:s",))
    packer.note("gone", ticket)
    assert packer.rank(loads(a=0, b=1), ticket) == ["b", "a"]


def test_a_target_is_the_only_place_full_or_not() -> None:
    assert rank(loads(a=9, b=0), Ticket(target="a")) == "a"
    assert rank(loads(a=9, b=0), Ticket(target="c")) == "ba", "whoever gets it passes it on"


def test_those_it_was_lost_on_are_shunned_while_there_are_others() -> None:
    packer, ticket = Packer(), Ticket(("session:s",), shunned=("a", "x"))
    packer.note("a", ticket)
    assert packer.rank(loads(a=3, b=0, c=1), ticket) == ["c", "b"]
    assert packer.rank(loads(a=3), ticket) == ["a"]


def test_the_oldest_kin_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST_REMEMBERED", 2)
    packer = Packer()
    for kin in ("one", "two", "one", "three"):
        packer.note("a", Ticket((kin,)))
    kept = {kin for kin in ("one", "two", "three") if _is_home(packer, kin)}
    assert kept == {"one", "three"}


def _is_home(packer: Packer, kin: str) -> bool:
    return packer.rank(loads(a=0, b=3), Ticket((kin,)))[0] == "a"


@given(LOADS, KIN, st.lists(st.tuples(st.sampled_from(NAMES), KIN), max_size=6))
def test_a_ranking_is_every_replica_once(
    found: dict[str, ReplicaLoad],
    kin: tuple[str, ...],
    earlier: list[tuple[str, tuple[str, ...]]],
) -> None:
    packer = Packer()
    for name, others in earlier:
        packer.note(name, Ticket(others))
    ranked = packer.rank(found, Ticket(kin))
    assert sorted(ranked) == sorted(found)
    is_full = [found[name].is_full for name in ranked]
    assert is_full == sorted(is_full), "none that is full before one that is not"
