"""When which work was done: stretches of time, each with the work of every request in it.

A counter that ticks every 100 ms counts up to its last tick, in the middle of some step. The
timeline tells which work lies between two ticks: a stretch that a tick divides is divided with it,
in proportion to time. Each domain has ticks of its own, so that a stretch stays until all of them
are past it.

Contract: stretches are added in order of time. `resolution_s` is the length from which a stretch is
closed and another begun; steps within one are added up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greenllm.energy.account.attribution import Work
from greenllm.energy.account.curve import WIDTHS
from greenllm.energy.account.tally import Key, WindowTally

_TOUCHING_S = 0.005
_AFTER_S = 1e-9


@dataclass(slots=True)
class Stretch:
    """Work between two moments; its first step ended at `began_s`."""

    start_s: float
    end_s: float
    tally: WindowTally
    began_s: float

    def part_in(self, start_s: float, end_s: float) -> float:
        """Which fraction of it lies after `start_s` and up to `end_s`."""
        duration_s = self.end_s - self.start_s
        if duration_s <= 0:
            return float(start_s < self.end_s <= end_s)
        within_s = min(self.end_s, end_s) - max(self.start_s, start_s)
        return min(1.0, max(0.0, within_s / duration_s))


class Timeline:
    """The work that some counter has not counted yet; `make` begins the tally of a stretch."""

    def __init__(self, make: Callable[[], WindowTally], resolution_s: float) -> None:
        self.last_work_s = float("-inf")
        self._counted_s = float("-inf")
        self._make = make
        self._resolution_s = resolution_s
        self._stretches: deque[Stretch] = deque()

    def __bool__(self) -> bool:
        return bool(self._stretches)

    @property
    def oldest_s(self) -> float:
        """Since when its oldest work waits to be counted; infinite where there is none."""
        return self._stretches[0].began_s if self._stretches else float("inf")

    @property
    def owners(self) -> set[str]:
        """Requests with work on it."""
        return {owner for stretch in self._stretches for owner in stretch.tally.owners}

    def add(self, start_s: float, end_s: float, note: Callable[[WindowTally], None]) -> None:
        """Add work that was done between two moments; `note` puts it on the tally."""
        end_s = max(end_s, self._counted_s + _AFTER_S)
        start_s = min(end_s, max(start_s, self._counted_s))
        last = self._stretches[-1] if self._stretches else None
        if last is None or not self._may_grow(last, start_s):
            last = Stretch(start_s, end_s, self._make(), end_s)
            self._stretches.append(last)
        note(last.tally)
        last.end_s = self.last_work_s = end_s

    def _may_grow(self, last: Stretch, start_s: float) -> bool:
        is_whole = last.start_s >= self._counted_s  # else a part of it has been counted
        is_short = last.end_s - last.start_s < self._resolution_s
        return is_whole and is_short and start_s - last.end_s < max(_TOUCHING_S, self._resolution_s)

    def seal(self, at_s: float) -> None:
        """Some counter has counted all until a moment: work that is added later is later."""
        self._counted_s = max(self._counted_s, at_s)

    def between(self, start_s: float, end_s: float) -> list[tuple[Key, Work]]:
        """All work after one moment and up to another, by request and phase."""
        found: dict[Key, Work] = {}
        for tally, part in self._parts(start_s, end_s):
            for key, work in tally.works():
                scaled = work if part == 1 else work.scaled(part)
                found[key] = found[key] + scaled if key in found else scaled
        return list(found.items())

    def busy_s(self, start_s: float, end_s: float) -> list[float]:
        """For how long steps of each width ran after one moment and up to another."""
        total = [0.0] * WIDTHS
        for tally, part in self._parts(start_s, end_s):
            total = [a + part * b for a, b in zip(total, tally.busy_s, strict=True)]
        return total

    def _parts(self, start_s: float, end_s: float) -> Iterator[tuple[WindowTally, float]]:
        """What lies between two moments, and which fraction of it."""
        for stretch in self._stretches:
            part = stretch.part_in(start_s, end_s)
            if part > 0:
                yield stretch.tally, part

    def forget(self, until_s: float) -> list[tuple[Key, Work]]:
        """Drop and return what ended by a moment: every counter has counted it."""
        found: list[tuple[Key, Work]] = []
        while self._stretches and self._stretches[0].end_s <= until_s:
            found += self._stretches.popleft().tally.works()
        return found
