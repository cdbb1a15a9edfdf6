"""`packing.Packer` as a request router of Ray Serve; runs in the front's process.

Calls are `(Call, Ticket)`; the ticket says what the router needs, and is told where the call went.
A call counts for a replica once it is ranked: many may come before the first is accepted.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serving.cluster.packing import Packer, ReplicaLoad
from serving.cluster.scaling import STAT
from serving.cluster.wire import Ticket

# A call that has not been accepted by then waits for room, or has been given up.
_TENTATIVE_S = 1.0
_MOST_REMEMBERED = 1_000


class PackingRouter(RequestRouter):  # type: ignore[misc]
    """Ranks replicas; Ray Serve sends to the best of them that accepts."""

    def initialize_state(self, full_at: int) -> None:
        """Called by Ray Serve with `request_router_kwargs`."""
        self._full_at = full_at
        self._packer = Packer()
        self._routed: dict[str, str] = {}
        self._completed: OrderedDict[str, None] = OrderedDict()
        self._tentative: dict[str, tuple[str, float]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas by preference, each a rank of its own."""
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ticket = ticket_of(pending_request)
        if pending_request is not None:
            self._tentative.pop(pending_request.metadata.internal_request_id, None)
        ranked = self._packer.rank(self._loads(named), ticket)
        if pending_request is not None:
            # Else Ray Serve asks again at once when nobody has room, for ever and without a pause.
            pending_request.routing_context.should_backoff = True
            if ranked:
                call = pending_request.metadata.internal_request_id
                self._tentative[call] = (ranked[0], time.monotonic())
        return [[named[name]] for name in ranked]

    def _loads(self, named: dict[str, RunningReplica]) -> dict[str, ReplicaLoad]:
        since_s = time.monotonic() - _TENTATIVE_S
        self._tentative = {
            call: (name, at_s) for call, (name, at_s) in self._tentative.items() if at_s > since_s
        }
        counts = Counter(self._routed.values())
        counts.update(name for name, _ in self._tentative.values())
        return {
            name: ReplicaLoad(counts[name], int(replica.routing_stats.get(STAT, self._full_at)))
            for name, replica in named.items()
        }

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """A replica has accepted."""
        ticket, call = ticket_of(pending_request), pending_request.metadata.internal_request_id
        ticket.replica = replica_id.unique_id
        self._packer.note(replica_id.unique_id, ticket)
        self._tentative.pop(call, None)
        if call not in self._completed:  # a short one may be, before it is told to be accepted
            self._routed[call] = replica_id.unique_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A replica has answered, or refused, or is gone."""
        self._routed.pop(internal_request_id, None)
        self._completed[internal_request_id] = None
        while len(self._completed) > _MOST_REMEMBERED:
            self._completed.popitem(last=False)


def ticket_of(request: PendingRequest | None) -> Ticket:
    """The ticket that a call carries."""
    found = () if request is None else request.args
    return next((value for value in found if isinstance(value, Ticket)), Ticket())
