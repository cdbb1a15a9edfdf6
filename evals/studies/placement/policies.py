"""Who gets a request, who is woken, who may sleep: decisions as pure functions of what is seen.

Contract: a policy sees a frozen view of the fleet and keeps nothing. Machines that are awake with
the same number of requests are alike to it, so it names a region and a number of requests in hand;
which of those machines it is, the simulator chooses. `Spread` keeps all awake and takes the least
loaded. `Pack` fills the fullest machine below the batch limit, keeps some places free ahead of
arrivals, and lets the others sleep. `Carbon` packs in the region that is cleanest now, among those
whose detour is short enough, and falls back on the others while machines there wake.

Not covered: looking ahead at intensities or arrivals, moving a request that has begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


@dataclass(frozen=True)
class RegionView:
    """A region as a policy sees it.

    Args:
        awake: machines awake, by how many requests they have in hand, from 0 to the batch limit.
        starting: machines on their way.
        asleep: machines that could be woken.
        waiting: requests that wait for a place here.
        g_per_kwh: the grid's intensity now, None where nobody knows it.
        detour_s: what an answer from here takes longer.
    """

    awake: tuple[int, ...]
    starting: int
    asleep: int
    waiting: int
    g_per_kwh: float | None
    detour_s: float

    @property
    def limit(self) -> int:
        """The batch limit."""
        return len(self.awake) - 1

    @cached_property
    def places(self) -> int:
        """Places of the machines awake."""
        return self.limit * sum(self.awake)

    @cached_property
    def free(self) -> int:
        """Those that are free."""
        return sum((self.limit - load) * count for load, count in enumerate(self.awake))

    @property
    def coming(self) -> int:
        """Places that are free or will be, less those that wait for them."""
        return self.free + self.starting * self.limit - self.waiting

    @property
    def machines(self) -> int:
        """All machines."""
        return sum(self.awake) + self.starting + self.asleep

    def emptiest(self) -> int | None:
        """The least number of requests in hand, below the limit."""
        return next((load for load, count in enumerate(self.awake[:-1]) if count), None)

    def fullest(self) -> int | None:
        """The largest, below the limit."""
        loads = range(self.limit - 1, -1, -1)
        return next((load for load in loads if self.awake[load]), None)


Fleet = Sequence[RegionView]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes: to a machine with `load` requests in hand, or to wait (None).

    `wake` is a region in which one more machine is started.
    """

    region: int
    load: int | None
    wake: int | None = None


class Policy(Protocol):
    """What the simulator asks."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def awake_at_start(self, fleet: Fleet, needed: int) -> tuple[int, ...]:
        """Machines awake in each region at first, when about `needed` have work."""
        ...

    def place(self, fleet: Fleet) -> Placement:
        """Where the request that has just come goes."""
        ...

    def may_sleep(self, fleet: Fleet, region: int) -> bool:
        """Whether a machine that has been without work there for long enough is put to sleep."""
        ...


@dataclass(frozen=True)
class Spread:
    """Everybody awake, the least loaded is next."""

    name: str = "spread"

    def awake_at_start(self, fleet: Fleet, needed: int) -> tuple[int, ...]:
        """All."""
        return tuple(region.machines for region in fleet)

    def place(self, fleet: Fleet) -> Placement:
        """The least loaded of all regions; of equals the one with most such machines."""
        found = [
            (load, -region.awake[load], place)
            for place, region in enumerate(fleet)
            if (load := region.emptiest()) is not None
        ]
        if not found:
            return Placement(_shortest_queue(fleet, range(len(fleet))), None)
        load, _, place = min(found)
        return Placement(place, load)

    def may_sleep(self, fleet: Fleet, region: int) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Pack:
    """Few machines, full ones, in regions by `order` (as given where it is empty)."""

    spare_share: float = 0.1
    order: tuple[int, ...] = ()
    name: str = "pack"

    def ranking(self, fleet: Fleet) -> Sequence[int]:
        """Regions, the preferred first."""
        return self.order or range(len(fleet))

    def awake_at_start(self, fleet: Fleet, needed: int) -> tuple[int, ...]:
        """What is needed, at least one, in the order of preference."""
        left, found = max(1, needed), [0] * len(fleet)
        for place in self.ranking(fleet):
            found[place] = min(left, fleet[place].machines)
            left -= found[place]
        return tuple(found)

    def place(self, fleet: Fleet) -> Placement:
        """The fullest with a free place in the first region that has one."""
        ranking = self.ranking(fleet)
        wake = self._wake(fleet, ranking)
        for place in ranking:
            if (load := fleet[place].fullest()) is not None:
                return Placement(place, load, wake)
        if wake is not None:
            return Placement(wake, None, wake)
        return Placement(_shortest_queue(fleet, ranking), None)

    def may_sleep(self, fleet: Fleet, region: int) -> bool:
        """Where enough places stay free without it; beyond the first choice always."""
        if region != _first_choice(fleet, self.ranking(fleet)):
            return True
        view = fleet[region]
        return view.free - view.limit >= self._spare(view.places - view.limit)

    def _spare(self, places: int) -> int:
        return max(1, math.ceil(self.spare_share * places))

    def _wake(self, fleet: Fleet, ranking: Sequence[int]) -> int | None:
        """The first choice, if free places there get short and one more can help."""
        place = _first_choice(fleet, ranking)
        view = fleet[place]
        is_short = view.coming - 1 < self._spare(view.places)
        return place if view.asleep and is_short else None


@dataclass(frozen=True)
class Carbon(Pack):
    """Packs where electricity is cleanest now, among regions at most `max_detour_s` away."""

    max_detour_s: float = math.inf
    name: str = "carbon"

    def ranking(self, fleet: Fleet) -> Sequence[int]:
        """By intensity, the unknown last; those too far are left out unless all are."""
        near = [i for i, view in enumerate(fleet) if view.detour_s <= self.max_detour_s]

        def dirtiness(place: int) -> tuple[float, float, int]:
            g_per_kwh = fleet[place].g_per_kwh
            known = math.inf if g_per_kwh is None else g_per_kwh
            return known, fleet[place].detour_s, place

        return sorted(near or range(len(fleet)), key=dirtiness)


def _first_choice(fleet: Fleet, ranking: Sequence[int]) -> int:
    """The first region that has room or can make it; the first of all, if there is none."""
    for place in ranking:
        if fleet[place].asleep or fleet[place].coming > 0:
            return place
    return ranking[0]


def _shortest_queue(fleet: Fleet, ranking: Sequence[int]) -> int:
    """The region with the fewest waiting for each machine that is or will be awake."""
    queues = [
        (view.waiting / (view.machines - view.asleep), place)
        for place in ranking
        if (view := fleet[place]).machines > view.asleep
    ]
    return min(queues)[1]
