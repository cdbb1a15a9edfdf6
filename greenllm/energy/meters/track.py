"""Follows physical counters: what they have counted, however they wrap, slip, glitch or restart.

Contract: a sum never decreases, and grows by no more than the hardware can draw. A step beyond that
is not believed. A fall is believed only when a later look, at least a period after the first,
confirms it; until then nothing is added, and the joules are of an older moment:

    a wrap              the published range makes it whole
    a slip              is small: nothing is added until the counter has passed its highest value
    a reset             what was counted since then is added; what was lost with it is not known
    any other jump      the counter is followed from its new value

Resets, jumps and values that vanish again are faults; wraps and slips are not. A gap is a fault
that holds joules back now, or has lost some. CPU seconds can be followed in the same way: their
watts are processors.

Not covered: counters that are wrong by less than the hardware can draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

_MARGIN = 2.0
_SLACK_PERIODS = 2
_LEAST_SLIP_S = 0.1


class Counter(Protocol):
    """One physical counter of joules."""

    @property
    def name(self) -> str:
        """What people call it, such as `package-0`."""

    @property
    def largest_w(self) -> float:
        """More watts than this it cannot count for long."""

    @property
    def wraps_at_j(self) -> float | None:
        """The joules after which it begins again at 0; None where that is not known."""

    def read_j(self) -> float:
        """The joules that it says now.

        Raises:
            SensorError: it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class _Doubt:
    raw_j: float
    since_s: float
    is_fault: bool


class CounterTrack:
    """Follows one counter.

    Attributes:
        sum_j: What it has counted since the track began. [J]
        moved_s: When it was last seen to have moved. [s]
        changed_s: When it last said anything else than before, true or not. [s]
        num_moves: How often it was seen to have moved.
        num_faults: How often it said what cannot be true.
        as_of_s: The moment that `sum_j` is of: between the last look that saw the old value and
            the first that saw the new one, and at most a period before the latter. [s]
    """

    def __init__(
        self,
        raw_j: float,
        at_s: float,
        *,
        largest_w: float,
        period_s: float,
        wraps_at_j: float | None = None,
    ) -> None:
        self.sum_j = 0.0
        self.moved_s = self.changed_s = at_s
        self.num_moves = self.num_faults = 0
        self.as_of_s = at_s - period_s / 2
        self._largest_w = _MARGIN * largest_w
        self._period_s = period_s
        self._wraps_at_j = wraps_at_j
        self._slip_j = self._largest_w * max(_SLACK_PERIODS * period_s, _LEAST_SLIP_S)
        self._highest_j = self._raw_j = raw_j
        self._looked_s = at_s
        self._doubt: _Doubt | None = None

    def see(self, raw_j: float, at_s: float) -> bool:
        """Take what the counter says; returns whether joules are lost for good."""
        if raw_j != self._raw_j:
            self._raw_j, self.changed_s = raw_j, at_s
        grown_j = raw_j - self._highest_j
        if 0 <= grown_j <= self._most_j(self.moved_s, at_s):
            self._doubt = None
            if grown_j > 0:
                self._move(grown_j, raw_j, at_s)
            self._looked_s = at_s
            return False
        doubt = self._doubt
        if doubt is None or not self._goes_on(doubt, raw_j, at_s):
            is_fault = not self._has_slipped(raw_j) and self._wrapped_j(raw_j, at_s) is None
            self._doubt = _Doubt(raw_j, at_s, is_fault)
            self.num_faults += is_fault
            return False
        if at_s - doubt.since_s < self._period_s or self._has_slipped(raw_j):
            return False
        return self._believe(doubt, raw_j, at_s)

    @property
    def is_at_fault(self) -> bool:
        """Whether what it says now cannot be true."""
        return self._doubt is not None and self._doubt.is_fault

    def _most_j(self, since_s: float, at_s: float) -> float:
        return self._largest_w * (at_s - since_s + _SLACK_PERIODS * self._period_s)

    def _goes_on(self, doubt: _Doubt, raw_j: float, at_s: float) -> bool:
        return 0 <= raw_j - doubt.raw_j <= self._most_j(doubt.since_s, at_s)

    def _has_slipped(self, raw_j: float) -> bool:
        """Whether it went back a little; a young counter that begins again has lost most of it."""
        return 0 < self._highest_j - raw_j <= min(self._slip_j, self._highest_j / 2)

    def _wrapped_j(self, raw_j: float, at_s: float) -> float | None:
        """What was counted if the counter has wrapped; None if it cannot have."""
        if self._wraps_at_j is None or raw_j > self._highest_j:
            return None
        wrapped_j = self._wraps_at_j - self._highest_j + raw_j
        return wrapped_j if 0 <= wrapped_j <= self._most_j(self.moved_s, at_s) else None

    def _believe(self, doubt: _Doubt, raw_j: float, at_s: float) -> bool:
        """Follow the counter from where it is now; returns whether joules are missing."""
        wrapped_j = self._wrapped_j(raw_j, at_s)
        is_reset = 0 <= raw_j <= min(self._highest_j, self._most_j(self.moved_s, at_s))
        grown_j = raw_j if is_reset else raw_j - doubt.raw_j
        self._move(grown_j if wrapped_j is None else wrapped_j, raw_j, at_s)
        self._doubt, self._looked_s = None, at_s
        return wrapped_j is None

    def _move(self, grown_j: float, raw_j: float, at_s: float) -> None:
        self.sum_j += grown_j
        self._highest_j = raw_j
        self.as_of_s = (max(self._looked_s, at_s - self._period_s) + at_s) / 2
        self.moved_s = at_s
        self.num_moves += 1


class Tracks:
    """Follows the counters that make up one domain; their sum moves when all of them have.

    Attributes:
        joules: What they have counted since the tracks began. [J]
        as_of_s: The moment that `joules` are of. [s]
    """

    def __init__(
        self,
        counters: Sequence[Counter],
        *,
        period_s: float,
        clock: Callable[[], float],
        hole_s: float = math.inf,
    ) -> None:
        """Begin; that nobody looked for longer than `hole_s` is a gap.

        Raises:
            SensorError: a counter cannot be read.
        """
        self._counters = counters
        self._clock = clock
        raws_j = [counter.read_j() for counter in counters]
        now_s = clock()
        self._tracks = [
            CounterTrack(
                raw_j,
                now_s,
                largest_w=counter.largest_w,
                period_s=period_s,
                wraps_at_j=counter.wraps_at_j,
            )
            for counter, raw_j in zip(counters, raws_j, strict=True)
        ]
        self._told = [0] * len(counters)
        self._hole_s = hole_s
        self._looked_s = now_s
        self._has_lost = False
        self.joules = 0.0
        self.as_of_s = now_s - period_s / 2

    def look(self) -> float:
        """Read all counters, then follow them: one that fails leaves everything as it was.

        Returns the moment.

        Raises:
            SensorError: a counter cannot be read.
        """
        raws_j = [counter.read_j() for counter in self._counters]
        now_s = self._clock()
        for track, raw_j in zip(self._tracks, raws_j, strict=True):
            self._has_lost |= track.see(raw_j, now_s)
        self._has_lost |= now_s - self._looked_s > self._hole_s
        self._looked_s = now_s
        moves = [track.num_moves for track in self._tracks]
        if all(later > told for later, told in zip(moves, self._told, strict=True)):
            self._told = moves
            self.joules = sum(track.sum_j for track in self._tracks)
            self.as_of_s = sum(track.as_of_s for track in self._tracks) / len(moves)
        return now_s

    def take_loss(self) -> bool:
        """Whether joules were lost since this was last asked."""
        has_lost, self._has_lost = self._has_lost, False
        return has_lost

    @property
    def holds_back(self) -> bool:
        """Whether joules are held back now, as a counter says what cannot be true."""
        return any(track.is_at_fault for track in self._tracks)

    @property
    def num_faults(self) -> int:
        """How often a counter said what cannot be true."""
        return sum(track.num_faults for track in self._tracks)

    @property
    def moved_s(self) -> float:
        """The moment at which a counter was last seen to have moved."""
        return max(track.moved_s for track in self._tracks)

    def still_since(self, moment_s: float) -> tuple[str, ...]:
        """Names of the counters that have said the same since a moment."""
        pairs = zip(self._counters, self._tracks, strict=True)
        return tuple(counter.name for counter, track in pairs if track.changed_s <= moment_s)
