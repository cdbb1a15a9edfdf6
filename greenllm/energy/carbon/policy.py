"""From joules to grams: which intensity, which PUE, which share of the hardware's manufacture.

Contract: without a named intensity source there are no grams; without an embodied figure for the
hardware the embodied grams are None. Intensity is the location-based average at the time the
request came in (SCI, ISO/IEC 21031).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from greenllm.energy.carbon.footprint import EmbodiedModel, operational_g
from greenllm.energy.carbon.grid import IntensitySource
from greenllm.energy.receipt import Receipt


@dataclass(frozen=True, slots=True)
class CarbonPolicy:
    """How a server turns its receipts' joules into grams."""

    source: IntensitySource | None
    pue: float = 1.0
    embodied: EmbodiedModel | None = None

    def apply(self, receipt: Receipt) -> Receipt:
        """Add the grams and what they rest on."""
        total_j = receipt.total_j
        if self.source is None or total_j is None:
            return receipt
        intensity = self.source.intensity(receipt.created_s)
        grams = self.embodied.grams(receipt.resident_s) if self.embodied else None
        return replace(
            receipt,
            operational_g=operational_g(total_j, self.pue, intensity.g_per_kwh),
            embodied_g=grams,
            intensity_g_per_kwh=intensity.g_per_kwh,
            intensity_zone=intensity.zone,
            intensity_source=intensity.source,
            intensity_year=intensity.year,
            pue=self.pue,
        )
