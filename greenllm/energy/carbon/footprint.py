"""Grams of CO2 equivalent from joules and from hardware, as the SCI specification has it.

Contract: pure functions, checked inputs, grams out. Operational carbon is
`C = E_IT * PUE * I`; embodied carbon is `M = TE * (TiR / EL) * (RR / ToR)`; the SCI score is
`(operational + embodied) / R`, here with R = 1,000 tokens. The energy of the IT equipment and
the PUE are kept apart. What is unknown is None and stays None in every sum.

Source: Software Carbon Intensity 1.1 (ISO/IEC 21031:2024); the embodied figure per vCPU is the
median of the platform figures in ccf-coefficients (Apache-2.0), see `data/embodied.csv`. The
lifetime of four years is an assumption, stated there too. PUE 1.56 is the average of the
Uptime Institute's global survey of 2024, for sites that do not know their own.

Not covered: market-based measures, offsets, water, networks, clients, end-of-life treatment.
"""

import math
from dataclasses import dataclass
from typing import Self

from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.tables import read_table
from greenllm.energy.units import joules_to_kwh, kg_to_g, years_to_seconds

TOKENS_PER_SCI_UNIT = 1_000


@dataclass(frozen=True, slots=True)
class EmbodiedModel:
    """Carbon from making a piece of hardware, spread evenly over its life.

    Args:
        total_g: best figure for the whole piece.
        low_g: lower end of the published range.
        high_g: upper end of the published range.
        lifetime_s: expected lifespan.
        source: where the figure comes from.
    """

    total_g: float
    low_g: float
    high_g: float
    lifetime_s: float
    source: str

    def __post_init__(self) -> None:
        _check("low_g", self.low_g)
        _check("total_g", self.total_g, minimum=self.low_g)
        _check("high_g", self.high_g, minimum=self.total_g)
        _check_positive("lifetime_s", self.lifetime_s)

    @classmethod
    def per_vcpu(cls, num_vcpus: float = 1.0) -> Self:
        """The default for `num_vcpus` virtual CPUs of a server."""
        _check_positive("num_vcpus", num_vcpus)
        row = next(row for row in read_table("embodied.csv") if row["resource"] == "vcpu")
        return cls(
            total_g=kg_to_g(float(row["total_kg"])) * num_vcpus,
            low_g=kg_to_g(float(row["low_kg"])) * num_vcpus,
            high_g=kg_to_g(float(row["high_kg"])) * num_vcpus,
            lifetime_s=years_to_seconds(float(row["lifetime_years"])),
            source=row["source"],
        )

    def grams(self, time_s: float, share: float = 1.0) -> float:
        """Grams for holding `share` (0 to 1) of the piece for `time_s`."""
        return embodied_g(self.total_g, time_s, self.lifetime_s, share, 1.0)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Grams for one piece of work, with the figures they rest on.

    Args:
        operational_g: grams from the electricity used.
        embodied_g: grams from the hardware used, None where unknown.
        intensity: grid intensity behind the operational grams.
        pue: power usage effectiveness behind them.
    """

    operational_g: float
    embodied_g: float | None
    intensity: Intensity
    pue: float

    @property
    def total_g(self) -> float | None:
        """Operational and embodied grams; None while either is unknown."""
        return None if self.embodied_g is None else self.operational_g + self.embodied_g


def operational_g(it_j: float, pue: float, g_per_kwh: float) -> float:
    """Grams from the electricity of the IT equipment and of the building around it.

    Raises:
        ValueError: an argument is negative or not finite, or `pue` is below 1.
    """
    _check("it_j", it_j)
    _check("pue", pue, minimum=1.0)
    _check("g_per_kwh", g_per_kwh)
    return joules_to_kwh(it_j) * pue * g_per_kwh


def embodied_g(
    total_embodied_g: float,
    time_reserved_s: float,
    lifetime_s: float,
    resources_reserved: float,
    total_resources: float,
) -> float:
    """Grams of a hardware's manufacture that fall to one reservation of it.

    Raises:
        ValueError: an argument is negative or not finite, a lifetime or a total is zero, or
            more is reserved than there is.
    """
    _check("total_embodied_g", total_embodied_g)
    _check("time_reserved_s", time_reserved_s)
    _check_positive("lifetime_s", lifetime_s)
    _check("resources_reserved", resources_reserved)
    _check_positive("total_resources", total_resources)
    if resources_reserved > total_resources:
        raise ValueError(
            f"resources_reserved ({resources_reserved}) exceeds total_resources ({total_resources})"
        )
    return (
        total_embodied_g * (time_reserved_s / lifetime_s) * (resources_reserved / total_resources)
    )


def sci_g_per_1k_tokens(
    operational_g: float, embodied_g: float | None, tokens: int
) -> float | None:
    """The SCI score per 1,000 tokens; None without tokens or without the embodied part.

    Raises:
        ValueError: an argument is negative or not finite.
    """
    _check("operational_g", operational_g)
    _check("tokens", tokens)
    if embodied_g is None or tokens == 0:
        return None
    _check("embodied_g", embodied_g)
    return (operational_g + embodied_g) * TOKENS_PER_SCI_UNIT / tokens


def footprint(
    it_j: float, pue: float, intensity: Intensity, embodied_g: float | None = None
) -> Footprint:
    """The footprint of an energy at a place, plus embodied grams where they are known.

    Raises:
        ValueError: an argument is negative or not finite, or `pue` is below 1.
    """
    if embodied_g is not None:
        _check("embodied_g", embodied_g)
    grams = operational_g(it_j, pue, intensity.g_per_kwh)
    return Footprint(grams, embodied_g, intensity, pue)


def _check(name: str, value: float, minimum: float = 0.0) -> None:
    if not math.isfinite(value) or value < minimum:
        raise ValueError(f"{name} must be finite and at least {minimum:g}, not {value}")


def _check_positive(name: str, value: float) -> None:
    _check(name, value)
    if value == 0:
        raise ValueError(f"{name} must be greater than 0")
