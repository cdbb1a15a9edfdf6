"""What is asked of the simulator: how many machines, which batch limit, which policy, which region.

Contract: every row names its setting; rows of one study have the same arrivals. Load is a share of
what the fleet could do with full batches. A study of the day repeats the trace around the clock.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evals.studies.placement.machine import Assumed, Machine
from evals.studies.placement.outcome import Outcome
from evals.studies.placement.policies import Carbon, Pack, Policy, Spread
from evals.studies.placement.regions import HourlyIntensity
from evals.studies.placement.setting import Region, Setting
from evals.studies.placement.simulate import simulate
from evals.studies.placement.trace import Arrival, Trace
from greenllm.energy.units import S_PER_DAY

STUDY_MACHINES = 20
DAY_MACHINES = 5
AWAKE_FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What all questions have in common; the first grid is where requests come from."""

    machine: Machine
    trace: Trace
    grids: tuple[HourlyIntensity, ...]
    assumed: Assumed
    load: float
    limit: int
    clock: Callable[[], float]
    tell: Callable[[str], None]

    @property
    def largest(self) -> int:
        """The largest batch that was measured."""
        return self.machine.curve.largest

    def copies(self, machines: int) -> float:
        """Copies of the trace that give so many machines their load."""
        return self.load * machines / self.trace.demand(self.machine, self.largest)

    def window_s(self, machines: int) -> float:
        """The trace's length, or as much of it as the number of requests allows."""
        per_s = self.copies(machines) * len(self.trace.shots) / self.trace.period_s
        return min(self.trace.period_s, self.assumed.requests / per_s)

    def arrivals(self, machines: int, window_s: float) -> list[Arrival]:
        """For a fleet of this size."""
        return self.trace.arrivals(self.copies(machines), window_s, int(self.assumed.seed))

    def regions(self, machines: int) -> tuple[Region, ...]:
        """Machines shared out among the regions; too few are all in the first."""
        if not self.grids:
            return (Region("here", machines),)
        if machines < len(self.grids):
            return (Region(self.grids[0].zone, machines, 0.0, self.grids[0]),)
        each, more = divmod(machines, len(self.grids))
        return tuple(
            Region(grid.zone, each + (i < more), self.assumed.detour_s if i else 0.0, grid)
            for i, grid in enumerate(self.grids)
        )

    def run(
        self, policy: Policy, setting: Setting, arrivals: Sequence[Arrival], about: Row
    ) -> tuple[Row, Outcome]:
        """One row; how long it took is in it."""
        began_s = self.clock()
        outcome = simulate(setting, policy, arrivals)
        figures = outcome.figures(outcome.grams(setting.grids, setting.start_s))
        took_s = self.clock() - began_s
        row = {"policy": policy.name, "limit": setting.limit, **about, **figures, "run_s": took_s}
        self.tell(f"{policy.name}, {setting.machines} machines, limit {setting.limit}: "
                  f"{len(arrivals):,} requests in {took_s:.1f} s")  # fmt: skip
        return row, outcome

    def setting(self, regions: tuple[Region, ...], window_s: float, limit: int) -> Setting:
        """With what is assumed of sleep, at the trace's own time."""
        after_s = self.assumed.sleep_after_s
        return Setting(self.machine, limit, regions, after_s, self.trace.start_s, window_s)

    def pack(self, order: tuple[int, ...] = (), name: str = "pack") -> Pack:
        """With what is assumed of spare places."""
        return Pack(self.assumed.spare_share, order, name)

    def carbon(self) -> Carbon:
        """The same."""
        return Carbon(self.assumed.spare_share, max_detour_s=self.assumed.max_detour_s)


def replicas(scenario: Scenario) -> list[Row]:
    """So many machines awake for one load, and those that packing keeps awake."""
    window_s = scenario.window_s(STUDY_MACHINES)
    arrivals = scenario.arrivals(STUDY_MACHINES, window_s)
    needed = scenario.load * STUDY_MACHINES
    found = []
    for count in sorted({math.ceil(needed * factor) for factor in AWAKE_FACTORS}):
        setting = scenario.setting((Region("here", count),), window_s, scenario.limit)
        found.append(scenario.run(Spread(), setting, arrivals, {"needed": needed})[0])
    setting = scenario.setting((Region("here", STUDY_MACHINES),), window_s, scenario.limit)
    return [*found, scenario.run(scenario.pack(), setting, arrivals, {"needed": needed})[0]]


def limits(scenario: Scenario) -> list[Row]:
    """Batch limits, spread and packed."""
    window_s = scenario.window_s(STUDY_MACHINES)
    arrivals = scenario.arrivals(STUDY_MACHINES, window_s)
    sizes = {2**power for power in range(scenario.largest.bit_length())} | {scenario.largest}
    policies: tuple[Policy, ...] = (Spread(), scenario.pack())
    return [
        scenario.run(policy, scenario.setting((Region("here", STUDY_MACHINES),), window_s, size),
                  arrivals, {})[0]
        for policy in policies
        for size in sorted(sizes)
    ]  # fmt: skip


def fleets(scenario: Scenario, sizes: Sequence[int]) -> Iterator[Row]:
    """Policies by number of machines, at the trace's own hour."""
    for machines in sizes:
        regions, window_s = scenario.regions(machines), scenario.window_s(machines)
        arrivals = scenario.arrivals(machines, window_s)
        policies: list[Policy] = [Spread(), scenario.pack()]
        if len(regions) > 1:
            policies.append(scenario.carbon())
        for policy in policies:
            setting = scenario.setting(regions, window_s, scenario.limit)
            yield scenario.run(policy, setting, arrivals, {})[0]


def days(scenario: Scenario, year: int) -> Iterator[Row]:
    """Twelve days, the middle ones of a year's months; a small fleet, as a day is whole here.

    What only carbon-aware placement looks at is the grid: the others are run once, and priced.
    """
    machines = DAY_MACHINES * len(scenario.grids)
    regions = scenario.regions(machines)
    arrivals = scenario.arrivals(machines, S_PER_DAY)
    starts = [datetime(year, month, 15, tzinfo=UTC).timestamp() for month in range(1, 13)]
    policies: list[Policy] = [Spread()]
    for place, grid in enumerate(scenario.grids):
        rest = [other for other in range(len(scenario.grids)) if other != place]
        policies.append(scenario.pack((place, *rest), f"pack, {grid.zone} first"))
    for policy in policies:
        setting = _day(scenario, regions, starts[0])
        row, outcome = scenario.run(policy, setting, arrivals, {"days": len(starts)})
        grams = [outcome.grams(setting.grids, start_s) for start_s in starts]
        yield _priced(row, [one for one in grams if one is not None])
    runs = [
        scenario.run(
            scenario.carbon(), _day(scenario, regions, start_s), arrivals, {"days": len(starts)}
        )
        for start_s in starts
    ]
    yield _mean([row for row, _ in runs])


def _day(scenario: Scenario, regions: tuple[Region, ...], start_s: float) -> Setting:
    after_s = scenario.assumed.sleep_after_s
    return Setting(scenario.machine, scenario.limit, regions, after_s, start_s, S_PER_DAY)


def _priced(row: Row, grams: Sequence[float]) -> Row:
    by_day = [1000 * one / row["requests"] for one in grams]
    return {**row, "grams": statistics.mean(grams), "grams_per_1000": statistics.mean(by_day),
            "grams_per_1000_by_day": by_day}  # fmt: skip


def _mean(rows: Sequence[Row]) -> Row:
    """Means over days, of numbers; requests by region too."""
    found = dict(rows[0])
    for name, value in rows[0].items():
        if isinstance(value, float):
            found[name] = statistics.mean(row[name] for row in rows)
    found["served"] = [statistics.mean(column) for column in
                       zip(*(row["served"] for row in rows), strict=True)]  # fmt: skip
    found["joules_by"] = {
        name: statistics.mean(row["joules_by"][name] for row in rows)
        for name in rows[0]["joules_by"]
    }
    found["wakes"] = statistics.mean(row["wakes"] for row in rows)
    return _priced(found, [row["grams"] for row in rows])
