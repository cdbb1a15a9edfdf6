"""What the joules of requests rest on, as the server says: grams, FLOPs, grid, uncertainty.

Contract: pure. Sums are unknown where one part is; what describes is unknown where two requests
differ, as when the grid's intensity changed meanwhile. Not covered: means of what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

_SUMS = ("operational_g", "embodied_g", "flops")


@dataclass(frozen=True, slots=True)
class Basis:
    """Of one request or of several; None where the server does not say."""

    operational_g: float | None = None
    embodied_g: float | None = None
    flops: float | None = None
    uncertainty: float | None = None
    intensity_g_per_kwh: float | None = None
    intensity_zone: str | None = None
    intensity_source: str | None = None
    pue: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For reports, with the sum of both grams."""
        parts = (self.operational_g, self.embodied_g)
        found = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {**found, "total_g": sum_of(parts)}


def basis_of(energy: Mapping[str, Any]) -> Basis:
    """What an answer's `usage.energy` says."""
    return Basis(
        operational_g=energy.get("operational_gco2e"),
        embodied_g=energy.get("embodied_gco2e"),
        flops=energy.get("flops"),
        uncertainty=energy.get("uncertainty"),
        intensity_g_per_kwh=energy.get("carbon_intensity_g_per_kwh"),
        intensity_zone=energy.get("carbon_intensity_zone"),
        intensity_source=energy.get("carbon_intensity_source"),
        pue=energy.get("pue"),
    )


def together(parts: Sequence[Basis]) -> Basis:
    """Several requests at once; nothing is known of none."""
    found: dict[str, Any] = {}
    for spec in fields(Basis) if parts else ():
        values = [getattr(part, spec.name) for part in parts]
        alike = values[0] if all(value == values[0] for value in values) else None
        found[spec.name] = sum_of(values) if spec.name in _SUMS else alike
    return Basis(**found)


def sum_of(values: Sequence[float | None]) -> float | None:
    """The sum; unknown where a part is."""
    return None if None in values else sum(value for value in values if value is not None)
