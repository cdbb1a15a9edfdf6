"""Which replica a request goes to: few replicas, well filled, and where its prefix is warm.

Contract: pure but for the memory of who went where; knows nothing of Ray. A request goes, first
that applies: to the replica that its kin went to, while that one is not full; to the fullest
that is not full; to the emptiest. Full is where a token's joules no longer fall with the batch,
as each replica finds out (see `curve`). Replicas that get nothing can sleep or be stopped.

Not covered: how long the requests in flight will take yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.cluster.wire import Ticket

_MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Requests that a replica has, and how many fill it."""

    in_flight: int
    full_at: int

    @property
    def is_full(self) -> bool:
        """Whether another request would no longer make its tokens cheaper."""
        return self.in_flight >= self.full_at


class Packer:
    """Remembers where kin went, and ranks replicas."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, str] = OrderedDict()

    def rank(self, loads: Mapping[str, ReplicaLoad], ticket: Ticket) -> list[str]:
        """Replicas by preference, the best first; all of them where a target is not there.

        Whoever gets a call that is meant for another passes it on.
        """
        if ticket.target is not None and ticket.target in loads:
            return [ticket.target]
        ranked = [*self._warm(loads, ticket), *_packed(loads)]
        ranked = list(dict.fromkeys(ranked))
        kept = [name for name in ranked if name not in ticket.shunned]
        return kept or ranked

    def note(self, replica: str, ticket: Ticket) -> None:
        """A request went there: its kin will find its prefix, its adapter."""
        for kin in ticket.kin:
            self._homes[kin] = replica
            self._homes.move_to_end(kin)
        while len(self._homes) > _MOST_REMEMBERED:
            self._homes.popitem(last=False)

    def _warm(self, loads: Mapping[str, ReplicaLoad], ticket: Ticket) -> list[str]:
        homes = [self._homes[kin] for kin in ticket.kin if kin in self._homes]
        return [home for home in homes if home in loads and not loads[home].is_full]


def _packed(loads: Mapping[str, ReplicaLoad]) -> Sequence[str]:
    """Those with room, the fullest first; then the full ones, the emptiest first."""

    def order(name: str) -> tuple[bool, int, str]:
        load = loads[name]
        return (load.is_full, load.in_flight if load.is_full else -load.in_flight, name)

    return sorted(loads, key=order)
