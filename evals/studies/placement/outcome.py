"""What a simulated run comes to: joules by what machines did, latencies, grams of an hour's grid.

Contract: joules of requests, idling, sleeping and starting add up to all joules. Grams are the
joules of each hour and region at that hour's intensity, and None where a region's is not known.
PUE is 1: joules are those of the machines.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.load.figures import percentile
from evals.studies.placement.regions import HourlyIntensity
from greenllm.energy.carbon.footprint import operational_g
from greenllm.energy.units import S_PER_HOUR

PUE = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run; arrays have a place for every request, in the order of arrival.

    Args:
        horizon_s: the whole time, the last answer's end included.
        machines: machines in the fleet.
        joules: by `requests`, `idle`, `sleep` and `start`.
        seconds: machine seconds by phase.
        hourly_j: joules of each region, by hours from the start on.
        served: requests by region.
        wakes: machines started.
        most_awake: most machines awake or starting at once.
        tokens: tokens generated.
        latency_s: from arrival to the end, detour included.
        first_s: until the prompt was read, detour included.
        request_j: joules of each request.
    """

    horizon_s: float
    machines: int
    joules: Mapping[str, float]
    seconds: Mapping[str, float]
    hourly_j: tuple[tuple[float, ...], ...]
    served: tuple[int, ...]
    wakes: int
    most_awake: int
    tokens: int
    latency_s: array[float]
    first_s: array[float]
    request_j: array[float]

    @property
    def total_j(self) -> float:
        """All joules."""
        return sum(self.joules.values())

    def grams(self, grids: Sequence[HourlyIntensity | None], start_s: float) -> float | None:
        """Grams if the run had begun at `start_s` (Unix seconds); None where a grid is unknown."""
        total_g = 0.0
        for grid, hours_j in zip(grids, self.hourly_j, strict=True):
            if grid is None:
                return None
            for number, hour_j in enumerate(hours_j):
                at_s = start_s + S_PER_HOUR * number  # somewhere in that hour of the clock
                total_g += operational_g(hour_j, PUE, grid.g_per_kwh(at_s))
        return total_g

    def figures(self, grams: float | None = None) -> dict[str, Any]:
        """For a result; without requests what is per request is None."""
        count = len(self.latency_s)
        awake_s = self.horizon_s * self.machines - self.seconds["asleep"]
        busy_s = self.seconds["prompt"] + self.seconds["generation"]
        latencies = sorted(self.latency_s)
        return {
            "requests": count,
            "tokens": self.tokens,
            "horizon_s": self.horizon_s,
            "machines": self.machines,
            "joules": self.total_j,
            "joules_by": dict(self.joules),
            "joules_per_token": self.total_j / self.tokens if self.tokens else None,
            "idle_share": 1 - self.joules["requests"] / self.total_j if self.total_j else None,
            "grams": grams,
            "grams_per_1000": None if grams is None or not count else 1000 * grams / count,
            "p50_s": percentile(latencies, 0.5) if count else None,
            "p95_s": percentile(latencies, 0.95) if count else None,
            "first_p95_s": percentile(self.first_s, 0.95) if count else None,
            "mean_awake": awake_s / self.horizon_s,
            "most_awake": self.most_awake,
            "busy_share_of_awake": busy_s / awake_s if awake_s else None,
            "wakes": self.wakes,
            "served": list(self.served),
        }
