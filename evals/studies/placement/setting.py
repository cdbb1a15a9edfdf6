"""The fleet that is simulated, and the time it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from evals.entry import BenchError
from evals.studies.placement.machine import Machine
from evals.studies.placement.regions import HourlyIntensity


@dataclass(frozen=True, slots=True)
class Region:
    """Machines in one place; `grid` is None where the intensity is not known."""

    name: str
    machines: int
    detour_s: float = 0.0
    grid: HourlyIntensity | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A fleet, and the time it is looked at; `start_s` is in Unix seconds."""

    machine: Machine
    limit: int
    regions: tuple[Region, ...]
    sleep_after_s: float
    start_s: float
    window_s: float

    def __post_init__(self) -> None:
        if not self.regions or min(region.machines for region in self.regions) < 1:
            raise BenchError("every region needs a machine: give more nodes, or fewer regions")
        if self.window_s <= 0:
            raise BenchError(f"a run needs some time, not {self.window_s} s")

    @property
    def machines(self) -> int:
        """Of all regions."""
        return sum(region.machines for region in self.regions)

    @property
    def grids(self) -> tuple[HourlyIntensity | None, ...]:
        """Of each region."""
        return tuple(region.grid for region in self.regions)
