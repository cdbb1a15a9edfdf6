"""Carbon intensity of electricity: a packaged yearly table and the sources built on it.

Contract: an `Intensity` always names its source; there is no default zone and no figure
without one. `IntensityTable.lookup` takes an ISO 3166 alpha-3 or alpha-2 code or an English
name and never falls back to a neighbour or to the world: an unknown zone is an error that
suggests the closest names. Anything with `intensity(at_s)` is an `IntensitySource`.

Source: yearly lifecycle intensities of the production mix by Ember, as published by Our World in
Data (CC BY 4.0) or packaged by CO2.js (CC BY-SA 4.0), whichever is newer. The year differs by
row (2022 to 2025) and is kept with it; the table as a whole is under CC BY-SA 4.0.

Not covered: imports and exports between zones, hourly or marginal intensities, market-based
figures such as certificates, and regions inside a country.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from greenllm.energy.tables import closest, optional_int, read_table

ALIASES = {
    "uk": "GBR",
    "great britain": "GBR",
    "united states of america": "USA",
    "türkiye": "TUR",
    "turkiye": "TUR",
    "czech republic": "CZE",
    "korea": "KOR",
    "republic of korea": "KOR",
    "russian federation": "RUS",
    "viet nam": "VNM",
    "côte d'ivoire": "CIV",
    "ivory coast": "CIV",
    "cabo verde": "CPV",
    "timor-leste": "TLS",
    "réunion": "REU",
    "macau": "MAC",
    "dr congo": "COD",
}


class UnknownZoneError(ValueError):
    """The zone is not in the table."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """Grams of CO2 equivalent per kilowatt hour, with where and when they come from.

    Args:
        g_per_kwh: location-based average intensity.
        zone: ISO 3166 alpha-3 code, `WORLD`, or a name of the user's own.
        name: English name of the zone.
        year: year the figure describes, None where nobody said.
        source: who published it; never empty.
        licence: terms of the figure.
    """

    g_per_kwh: float
    zone: str
    name: str
    year: int | None
    source: str
    licence: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.g_per_kwh) and self.g_per_kwh >= 0):
            raise ValueError(f"g_per_kwh must be finite and not negative, not {self.g_per_kwh}")
        if not self.source.strip():
            raise ValueError("source must name where the intensity comes from")


class IntensitySource(Protocol):
    """Anything that knows the intensity at a point in time."""

    def intensity(self, at_s: float) -> Intensity:
        """The intensity that holds at `at_s` seconds since the Unix epoch."""
        ...


@dataclass(frozen=True, slots=True)
class StaticIntensity:
    """The same intensity at every time: a yearly average."""

    value: Intensity

    def intensity(self, at_s: float) -> Intensity:
        """The one intensity, whatever the time."""
        return self.value


@dataclass(frozen=True, slots=True)
class CustomIntensity:
    """A figure the user brings, which counts only together with the name of its source.

    Args:
        g_per_kwh: grams of CO2 equivalent per kilowatt hour.
        source: where the figure comes from, for instance a supplier's statement.
        zone: what to call the zone.
        year: year the figure describes, None where unknown.
    """

    g_per_kwh: float
    source: str
    zone: str = "custom"
    year: int | None = None

    def __post_init__(self) -> None:
        self.intensity(0.0)

    def intensity(self, at_s: float) -> Intensity:
        """The user's figure, whatever the time."""
        return Intensity(
            self.g_per_kwh, self.zone, self.zone, self.year, self.source, "supplied by the user"
        )


@dataclass(frozen=True, slots=True)
class IntensityTable:
    """Yearly intensities by zone.

    Args:
        by_zone: intensity by zone code, in file order.
        zone_by_key: zone code by every case-folded code, name and alias.
    """

    by_zone: Mapping[str, Intensity]
    zone_by_key: Mapping[str, str]

    @classmethod
    def load(cls) -> Self:
        """The table that ships with the package."""
        rows = read_table("intensity.csv")
        return cls({row["zone"]: _intensity(row) for row in rows}, _index(rows))

    def lookup(self, zone: str) -> Intensity:
        """The intensity of a zone given by code or English name, in any case.

        Raises:
            UnknownZoneError: no such zone; the message suggests the closest names.
        """
        code = self.zone_by_key.get(zone.strip().casefold())
        if code is None:
            hint = closest(zone.strip(), self._names())
            raise UnknownZoneError(f"no carbon intensity for zone {zone!r}: {hint}")
        return self.by_zone[code]

    def zones(self) -> tuple[str, ...]:
        """All zone codes, sorted."""
        return tuple(sorted(self.by_zone))

    def _names(self) -> list[str]:
        return [*self.by_zone, *(intensity.name for intensity in self.by_zone.values())]


def _intensity(row: Mapping[str, str]) -> Intensity:
    return Intensity(
        g_per_kwh=float(row["g_per_kwh"]),
        zone=row["zone"],
        name=row["name"],
        year=optional_int(row["year"]),
        source=row["source"],
        licence=row["licence"],
    )


def _index(rows: list[dict[str, str]]) -> dict[str, str]:
    index = dict(ALIASES)
    for row in rows:
        for key in (row["zone"], row["alpha2"], row["name"]):
            if key:
                index[key.casefold()] = row["zone"]
    return index
