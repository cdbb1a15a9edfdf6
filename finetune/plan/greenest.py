"""When to start: the window of a forecast whose electricity is greenest on average.

Contract: a pure choice from a series of hourly (or other) intensities, each of which holds until
the next. The run must end before the deadline; a series that does not reach so far is used as far
as it goes. Not covered: live forecasts; pausing in between.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from greenllm.config import ConfigError

_SERIES = "intensity_series"
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Series:
    """Intensities in g/kWh, each from its second (Unix) on; the last holds to the end."""

    at_s: tuple[float, ...]
    g_per_kwh: tuple[float, ...]
    source: str

    @property
    def end_s(self) -> float:
        """Where it ends: the last value holds as long as the one before it did."""
        last = self.at_s[-1]
        return last + (last - self.at_s[-2] if len(self.at_s) > 1 else 3600.0)

    def mean(self, start_s: float, duration_s: float) -> float:
        """Mean intensity of a window, weighted by time."""
        if duration_s <= 0:
            return self._at(start_s)
        end_s = start_s + duration_s
        inside = [at_s for at_s in self.at_s if start_s < at_s < end_s]
        edges = [start_s, *inside, end_s]
        pairs = itertools.pairwise(edges)
        return sum(self._at(a) * (b - a) for a, b in pairs) / duration_s

    def _at(self, moment_s: float) -> float:
        known = [g for at_s, g in zip(self.at_s, self.g_per_kwh, strict=True) if at_s <= moment_s]
        return known[-1] if known else self.g_per_kwh[0]


def read_series(path: Path) -> Series:
    """A CSV file with the columns `time` (ISO 8601 or Unix seconds) and `g_per_kwh`.

    Raises:
        ConfigError: it cannot be read, or a line is not such a pair.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--intensity-series: cannot read {path}: {error}", _SERIES) from error
    pairs = [_pair(path, number, row) for number, row in enumerate(rows, 2)]
    if not pairs:
        raise ConfigError(f"--intensity-series: {path} holds no values", _SERIES)
    if any(b[0] <= a[0] for a, b in itertools.pairwise(pairs)):
        raise ConfigError(f"--intensity-series: the times in {path} do not rise", _SERIES)
    times, values = zip(*pairs, strict=True)
    return Series(times, values, path.name)


def _pair(path: Path, number: int, row: dict[str, str]) -> tuple[float, float]:
    try:
        value = float(row["g_per_kwh"])
        if not 0 <= value < 1e5:
            raise ValueError(f"{value} is no intensity")
        return _moment(row["time"]), value
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--intensity-series: {path}:{number} needs time and g_per_kwh: {error}", _SERIES
        ) from error


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def seconds_of(text: str) -> float:
    """A duration such as 30m, 12h or 2d.

    Raises:
        ConfigError: it is none.
    """
    unit = _UNITS_S.get(text[-1:])
    try:
        value = float(text[:-1]) * (unit or 0.0)
    except ValueError:
        value = 0.0
    if unit is None or not 0 < value < 1e8:
        raise ConfigError(
            f"--deadline must be a time such as 30m, 12h or 2d, not {text!r}", "deadline"
        )
    return value


def greenest_start(
    series: Series, now_s: float, duration_s: float, deadline_s: float
) -> tuple[float, float]:
    """When to start and the mean intensity then; now, where nothing later fits or is greener.

    A best window begins now, or ends or begins at a change of the series.
    """
    latest_s = min(now_s + deadline_s, series.end_s) - duration_s
    starts = [now_s, latest_s]
    for change_s in series.at_s:
        starts += [change_s, change_s - duration_s]
    fitting: Sequence[float] = sorted({s for s in starts if now_s <= s <= latest_s} | {now_s})
    start_s = min(fitting, key=lambda s: (series.mean(s, duration_s), s))
    return start_s, series.mean(start_s, duration_s)
