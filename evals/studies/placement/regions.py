"""Hourly carbon intensity of a region, read from files of Electricity Maps.

Contract: hours follow each other without gaps, over as many files of a zone as are given; a line
that does not hold an hour and a number is refused with its number and what to do. An hour outside
of the files is an error, never a guess. The life-cycle figure is read (`LCA`), as the packaged
yearly table has it too.

Not covered: marginal intensities, forecasts: policies see the hour that is, not those to come.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from evals.entry import BenchError
from greenllm.energy.units import S_PER_HOUR

TIME, ZONE, NAME, FIGURE = "Datetime (UTC)", "Zone Id", "Zone Name", "(LCA)"


@dataclass(frozen=True, slots=True)
class HourlyIntensity:
    """Grams per kilowatt hour of a zone, hour by hour from `start_s` (Unix seconds) on."""

    zone: str
    name: str
    start_s: float
    hours: tuple[float, ...]

    @property
    def end_s(self) -> float:
        """When the last hour ends."""
        return self.start_s + S_PER_HOUR * len(self.hours)

    def g_per_kwh(self, at_s: float) -> float:
        """The figure of the hour.

        Raises:
            BenchError: it is not in the files.
        """
        place = math.floor((at_s - self.start_s) / S_PER_HOUR)
        if not 0 <= place < len(self.hours):
            first, last = (datetime.fromtimestamp(s, UTC) for s in (self.start_s, self.end_s))
            raise BenchError(
                f"{self.zone} has no intensity for {datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H}h"
                f" UTC: its files go from {first:%Y-%m-%d} to {last:%Y-%m-%d}; give that year's too"
            )
        return self.hours[place]


def read_region(lines: Iterable[str], origin: str) -> HourlyIntensity:
    """One file; `origin` is how messages call it.

    Raises:
        BenchError: a column is missing, a line is broken, or an hour is.
    """
    reader = csv.DictReader(lines)
    names = reader.fieldnames or ()
    figure = next((name for name in names if FIGURE in name), None)
    missing = [name for name in (TIME, ZONE, NAME) if name not in names]
    if figure is None or missing:
        wanted = ", ".join(missing or [f"carbon intensity {FIGURE}"])
        raise BenchError(f"{origin} has no column {wanted}: take Electricity Maps' hourly CSV")
    rows = list(reader)
    if not rows:
        raise BenchError(f"{origin} has no hours: it has a heading and nothing else")
    moments, hours = list[datetime](), list[float]()
    for number, row in enumerate(rows, start=2):
        place = f"line {number} of {origin}"
        moment, value = _hour(row, figure, place)
        if moments and moment != moments[-1] + timedelta(hours=1):
            raise BenchError(
                f"{place}: {row[TIME]} does not follow the hour before; hours must be whole and"
                " without gaps: put in what is missing, take out what is there twice"
            )
        if row[ZONE] != rows[0][ZONE]:
            raise BenchError(f"{place}: zone {row[ZONE]} after {rows[0][ZONE]}; one zone a file")
        moments.append(moment)
        hours.append(value)
    return HourlyIntensity(rows[0][ZONE], rows[0][NAME], moments[0].timestamp(), tuple(hours))


def _hour(row: dict[str, str], figure: str, place: str) -> tuple[datetime, float]:
    try:
        moment = datetime.fromisoformat(row[TIME]).replace(tzinfo=UTC)
        value = float(row[figure])
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{value} g/kWh")
    except (TypeError, ValueError) as error:
        raise BenchError(
            f"{place}: {error}; a line needs an hour and grams of 0 or more: correct it, or give a"
            " file without it"
        ) from error
    return moment, value


def load_regions(paths: Sequence[Path]) -> list[HourlyIntensity]:
    """Zones in the order in which they are first named; the files of one are joined.

    Raises:
        BenchError: a file cannot be read or is broken, or there are hours between two of a zone.
    """
    parts: dict[str, list[HourlyIntensity]] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise BenchError(f"--regions: {error}") from error
        part = read_region(lines, path.name)
        parts.setdefault(part.zone, []).append(part)
    return [_joined(sorted(found, key=lambda part: part.start_s)) for found in parts.values()]


def _joined(parts: Sequence[HourlyIntensity]) -> HourlyIntensity:
    hours = list(parts[0].hours)
    for before, after in itertools.pairwise(parts):
        if after.start_s != before.end_s:
            raise BenchError(
                f"the files of {before.zone} do not follow each other: give those in between, once"
            )
        hours += after.hours
    return HourlyIntensity(parts[0].zone, parts[0].name, parts[0].start_s, tuple(hours))
