"""Wall meters: what is asked for the power of the whole machine, and the file of a logger.

A file has rows `timestamp,watts` (ISO 8601 or Unix seconds; commas, semicolons, tabs or spaces) or
watts alone; more columns, headers and torn lines are skipped. While it grows its last line is the
power now. What did not show while the load ran is taken by its timestamps afterwards.

Not covered: energy counters (watt-hours); binary files; files that are replaced while they grow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from greenllm.core import GreenllmError

LARGEST_W = 1e6
_TAIL_BYTES = 4096
_LARGEST_BYTES = 64 << 20
_MILLISECONDS_FROM = 1e11
_SEPARATOR = re.compile(r"[,;\t]")


class WallError(GreenllmError):
    """The wall meter does not answer, or says what is no power; the message says which."""


@dataclass(frozen=True, slots=True)
class WallSample:
    """Power at a moment in Unix seconds."""

    at_s: float
    watts: float


class WallMeter(Protocol):
    """Tells the power of the whole machine, power supply and fans included."""

    @property
    def name(self) -> str:
        """What it is, without anything secret."""

    def poll(self, now_s: float) -> WallSample | None:
        """The power now; None if there is nothing new.

        Raises:
            WallError: it does not answer, or not with a power.
        """

    def between(self, from_s: float, to_s: float) -> list[WallSample]:
        """Samples of a time that is over, as far as they were written down.

        Raises:
            WallError: they cannot be read.
        """


class FileWall:
    """The file of a smart plug's logger."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._seen = self._size()

    def poll(self, now_s: float) -> WallSample | None:
        """The last whole line, if the file has grown."""
        size = self._size()
        if size == self._seen:
            return None
        lines = self._lines(tail=True)
        row = parse_row(lines[-1]) if lines else None
        if row is None:
            return None
        self._seen = size
        return WallSample(now_s, row[1])

    def between(self, from_s: float, to_s: float) -> list[WallSample]:
        """Rows with timestamps in that time."""
        if not self._size():
            return []
        rows = filter(None, map(parse_row, self._lines(tail=False)))
        return [WallSample(at_s, w) for at_s, w in rows if at_s and from_s <= at_s <= to_s]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _lines(self, *, tail: bool) -> list[str]:
        """Whole lines; with `tail` those of the end, of which the first may be torn."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, self._size() - (_TAIL_BYTES if tail else _LARGEST_BYTES)))
                text = file.read(_LARGEST_BYTES).decode("utf-8", errors="replace")
        except OSError as error:
            raise WallError(f"{self._path}: {error}") from error
        return list(_whole(text))


def _whole(text: str) -> Iterator[str]:
    """Lines that are written to their end, and have something in them."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield line.strip()


def parse_row(line: str) -> tuple[float | None, float] | None:
    """Moment (None where there is none) and watts of a line; None for what is no row."""
    text = line.replace('"', "").strip()
    fields = _SEPARATOR.split(text)
    if len(fields) == 1:
        fields = text.removesuffix("W").rsplit(None, 1)
    if not fields:
        return None
    watts = _power(fields[min(1, len(fields) - 1)].strip().removesuffix("W"))
    if watts is None or len(fields) == 1:
        return None if watts is None else (None, watts)
    at_s = _moment_s(fields[0].strip())
    return None if at_s is None else (at_s, watts)


def _power(text: str) -> float | None:
    try:
        watts = float(text)
    except ValueError:
        return None
    return watts if is_power(watts) else None


def is_power(watts: float) -> bool:
    """Whether a machine may draw so much."""
    return math.isfinite(watts) and 0 <= watts <= LARGEST_W


def _moment_s(text: str) -> float | None:
    """Unix seconds of a timestamp; one without a zone is local time."""
    try:
        at_s = float(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    if not math.isfinite(at_s):
        return None
    return at_s / 1000 if at_s > _MILLISECONDS_FROM else at_s
