"""From joules to grams: which intensity, which PUE, which share of the hardware's manufacture.

Contract: without a named intensity source there are no grams; without an embodied figure for the
hardware the embodied grams are None. Intensity is the location-based average at the time the
request came in (SCI, ISO/IEC 21031).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from greenllm.config import ConfigError
from greenllm.energy.carbon.footprint import EmbodiedModel, operational_g
from greenllm.energy.carbon.grid import (
    CustomIntensity,
    IntensitySource,
    IntensityTable,
    StaticIntensity,
    UnknownZoneError,
)
from greenllm.energy.hardware import read_cpu_info
from greenllm.energy.meters.limits import cpu_share
from greenllm.energy.receipt import Receipt
from greenllm.options import CarbonOptions

WORLD = "WORLD"


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


def carbon_policy(options: CarbonOptions, embodied: EmbodiedModel | None = None) -> CarbonPolicy:
    """The policy that was asked for.

    Raises:
        ConfigError: the zone is unknown.
    """
    return CarbonPolicy(intensity_source(options), options.pue, embodied)


def intensity_source(options: CarbonOptions) -> IntensitySource:
    """The intensity that was asked for: one's own, or that of a zone.

    Raises:
        ConfigError: the zone is unknown.
    """
    if options.intensity_g_per_kwh is not None:
        return CustomIntensity(options.intensity_g_per_kwh, options.intensity_source or "")
    try:
        return StaticIntensity(IntensityTable.load().lookup(options.zone))
    except UnknownZoneError as error:
        raise ConfigError(f"--zone {options.zone}: {error}", "zone") from error


def world_warning(options: CarbonOptions) -> str | None:
    """What is wrong with grams at the world's average intensity, where that is what is used.

    Raises:
        ConfigError: the zone is unknown.
    """
    used = intensity_source(options).intensity(0.0)
    if used.zone != WORLD:
        return None
    known = [intensity.g_per_kwh for intensity in IntensityTable.load().by_zone.values()]
    return (
        f"grams of CO2e are at the world's average, {used.g_per_kwh:.0f} g/kWh;"
        f" grids have {min(known):.0f} to {max(known):.0f}: name yours with --zone"
    )


def embodied_of(
    device: str, *, has_cuda: bool, num_cpus: int | None = None
) -> EmbodiedModel | None:
    """Manufacture of what computes: of so many CPUs, by default of those that it may use.

    It is known for CPUs only: on a GPU the figure would be far too low.
    """
    if device.startswith("cuda") or (device == "auto" and has_cuda):
        return None
    if num_cpus is not None:
        return EmbodiedModel.per_vcpu(num_cpus)
    num_vcpus = read_cpu_info().num_vcpus
    share = cpu_share(num_vcpus)
    return EmbodiedModel.per_vcpu(num_vcpus if share is None else share.num_cpus)
