"""The router's own books: what is ranked counts at once, what has ended no longer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from serving.cluster.router import PackingRouter, ticket_of
from serving.cluster.scaling import STAT
from serving.cluster.wire import Call, Ticket

CALL = Call("POST", "/", b"", (), b"")


@dataclass
class Replica:
    """A running replica as Ray Serve shows it to a router."""

    name: str
    routing_stats: dict[str, float] = field(default_factory=dict)

    @property
    def replica_id(self) -> Any:
        return SimpleNamespace(unique_id=self.name)


def pending(call: str, ticket: Ticket | None = None) -> Any:
    return SimpleNamespace(
        args=[CALL, ticket or Ticket()],
        metadata=SimpleNamespace(internal_request_id=call),
        routing_context=SimpleNamespace(should_backoff=False),
    )


@pytest.fixture
def router() -> PackingRouter:
    """Without Ray Serve's part of it, which needs a controller."""
    made = object.__new__(PackingRouter)
    made.initialize_state(full_at=4)
    return made


REPLICAS = [Replica("a"), Replica("b")]


def rank(router: PackingRouter, request: Any, replicas: list[Replica] = REPLICAS) -> list[str]:
    ranked = asyncio.run(router.choose_replicas(replicas, request))
    assert all(len(rank) == 1 for rank in ranked)
    return [replica.name for (replica,) in ranked]


def route(router: PackingRouter, call: str, replica: str, ticket: Ticket | None = None) -> None:
    router.on_request_routed(pending(call, ticket), Replica(replica).replica_id, None)


def in_flight(router: PackingRouter) -> dict[str, int]:
    found = router._loads({replica.name: replica for replica in REPLICAS})
    return {name: load.in_flight for name, load in found.items()}


def test_each_replica_is_a_rank_of_its_own_and_the_call_backs_off(router: PackingRouter) -> None:
    request = pending("c")
    assert rank(router, request) == ["a", "b"]
    assert request.routing_context.should_backoff


def test_a_call_counts_once_it_is_ranked(router: PackingRouter) -> None:
    firsts = [rank(router, pending(f"c{number}"))[0] for number in range(8)]
    assert firsts == ["a"] * 4 + ["b"] * 4
    assert in_flight(router) == {"a": 4, "b": 4}


def test_a_call_counts_once_however_often_it_is_ranked(router: PackingRouter) -> None:
    for _ in range(3):
        rank(router, pending("c"))
    assert in_flight(router) == {"a": 1, "b": 0}


def test_a_call_that_was_accepted_counts_where_it_went(router: PackingRouter) -> None:
    rank(router, pending("c"))
    route(router, "c", "b")
    assert in_flight(router) == {"a": 0, "b": 1}


def test_a_call_that_has_ended_counts_no_more(router: PackingRouter) -> None:
    route(router, "c", "a")
    route(router, "d", "a")
    router.on_request_completed(Replica("a").replica_id, "c")
    assert in_flight(router) == {"a": 1, "b": 0}
    router.on_request_completed(Replica("a").replica_id, "unknown")
    assert in_flight(router) == {"a": 1, "b": 0}


def test_a_call_that_was_never_accepted_is_forgotten(
    router: PackingRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank(router, pending("c"))
    now_s = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now_s + 0.9)
        assert in_flight(router) == {"a": 1, "b": 0}
        patch.setattr(time, "monotonic", lambda: now_s + 1.1)
        assert in_flight(router) == {"a": 0, "b": 0}


def test_a_ticket_is_told_where_its_call_went_and_its_kin_follow(router: PackingRouter) -> None:
    ticket = Ticket(("session:s",))
    route(router, "c", "b", ticket)
    assert ticket.replica == "b"
    for call in ("d", "e"):
        route(router, call, "a")
    assert rank(router, pending("f", Ticket(("session:s",)))) == ["b", "a"]
    assert rank(router, pending("g")) == ["a", "b"]


def test_a_target_that_is_not_there_does_not_wait_for_ever(router: PackingRouter) -> None:
    request = pending("c", Ticket(target="gone"))
    assert rank(router, request) == ["a", "b"]
    assert request.routing_context.should_backoff


def test_a_call_that_is_over_before_it_is_told_to_be_accepted_counts_no_more(
    router: PackingRouter,
) -> None:
    for number in range(5):
        request = pending(f"c{number}")
        rank(router, request)
        router.on_request_completed(Replica("a").replica_id, f"c{number}")
        router.on_request_routed(request, Replica("a").replica_id, None)
    assert in_flight(router) == {"a": 0, "b": 0}


def test_replicas_say_when_they_are_full(router: PackingRouter) -> None:
    replicas = [Replica("a", {STAT: 1.0}), Replica("b")]
    route(router, "c", "a")
    assert rank(router, pending("d"), replicas) == ["b", "a"]


def test_without_a_request_replicas_are_ranked_and_nothing_counts(router: PackingRouter) -> None:
    assert rank(router, None) == ["a", "b"]
    assert in_flight(router) == {"a": 0, "b": 0}


def test_a_ticket_is_found_among_the_arguments() -> None:
    ticket = Ticket(("session:s",))
    assert ticket_of(pending("c", ticket)) is ticket
    assert ticket_of(SimpleNamespace(args=[CALL])) == ticket_of(None) == Ticket()
