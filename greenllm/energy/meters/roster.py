"""Who shares a machine: a file that its servers share, with a line per coming and going.

What somebody has told of a power holds for an hour: a counter's slip is forgotten then, and a floor
that is true is told again.

Contract: `Roster` is safe between processes (an exclusive lock per change) and survives members
that die without leaving: the others strike them off when they notice, within `_LOOK_EVERY_S`.
Moments are of CLOCK_MONOTONIC, which all processes of a machine share. Once a member has joined,
the file can neither stop it nor slow it down: whoever makes it longer than `_MOST_BYTES` begins a
new one, lines that mean nothing are passed over, a lock that somebody holds is waited for only a
moment, and while the file cannot be used those who were there last are taken to be there still.

Not covered: a dead member's part of the floor until it is struck off (nobody pays it); containers
that do not see each other's processes.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

Event = tuple[float, str, str]

_LOOK_EVERY_S = 1.0
_JOIN_PATIENCE_S, _LOCK_PATIENCE_S, _LOCK_RETRY_S = 2.0, 0.02, 0.002
_MOST_BYTES = 16_384
_COMES, _GOES, _BEGINS = "+", "-", "!"
_ENDED = ("Z", "X")
_WORTH_TELLING = 0.01
_POWERS_HOLD_S = 3600.0
_FIELDS, _END = 4, "."


class Roster:
    """One line per coming (`+`) and going (`-`), with the moment; `!` begins a shortened file.

    Lines with a domain's name instead of a sign tell a power in watts, the lowest of its hour.
    When somebody has removed the file, its members begin another one.
    """

    def __init__(
        self,
        path: Path,
        *,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_alive: Callable[[str], bool] | None = None,
    ) -> None:
        """Join; the file's folder must exist.

        Raises:
            OSError: the file cannot be written, or somebody holds its lock.
        """
        self._path = path
        self._clock = clock
        self._is_alive = is_alive or _runs
        self._name = _identity(os.getpid() if pid is None else pid)
        self._looked_s = clock()
        self._rejoined_s = -math.inf
        self._seconds = self._kept_s = 0.0
        self._has_left = self._is_in_trouble = False
        self._known: Sequence[Event] = ()
        self._file: tuple[int, int, int] | None = None
        self._note(_COMES, self._name, _JOIN_PATIENCE_S)
        self._strike_off_the_dead(self._events())

    def seconds(self) -> tuple[float, float]:
        """The moment, and for how many seconds until then the floor was this member's."""
        events = self._events_or_rejoin()
        if self._clock() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = self._clock()
            events = self._strike_off_the_dead(events)
        now_s = self._clock()
        found_s = self._kept_s + share_of(self._name, events, now_s)
        self._seconds = max(self._seconds, found_s)
        return now_s, self._seconds

    def lowest_w(self, domain: str, now_w: float | None = None) -> float:
        """The lowest power that anybody has seen of late, `now_w` included; 0 where nobody has."""
        powers = self._powers(self._events_or_rejoin())
        lowest_w = min((w for _, name, w in powers if name == domain), default=None)
        if now_w is not None and (lowest_w is None or now_w < (1 - _WORTH_TELLING) * lowest_w):
            self._try_to_note(domain, f"{now_w:.6f}")
            return now_w
        return lowest_w or 0.0

    def _powers(self, events: Sequence[Event]) -> list[tuple[float, str, float]]:
        """Moment, domain and watts of what was told of powers and still holds."""
        since_s = self._clock() - _POWERS_HOLD_S
        told = [event for event in events if event[1] not in (_COMES, _GOES, _BEGINS)]
        return [(at_s, name, float(watts)) for at_s, name, watts in told if at_s >= since_s]

    def leave(self) -> None:
        """Share no longer; the last takes the file along."""
        self._has_left = True
        self._try_to_note(_GOES, self._name)

    def _events_or_rejoin(self) -> Sequence[Event]:
        """The file's lines; whoever finds itself not in them, or no file, comes again.

        Until then it was there with those who were known before.
        """
        before = self._known
        try:
            events = self._events()
            self._is_in_trouble = False
        except FileNotFoundError:
            events = ()
        except OSError as error:
            self._complain(error)
            return self._known
        if self._has_left or self._name in _present(events):
            return events
        now_s = self._clock()
        if now_s - self._rejoined_s < _LOOK_EVERY_S:
            return events
        self._rejoined_s = now_s
        self._seconds = max(self._seconds, self._kept_s + share_of(self._name, before, now_s))
        if self._try_to_note(_COMES, self._name):
            events = self._events()
            self._kept_s = self._seconds - share_of(self._name, events, self._clock())
        return events

    def _events(self) -> Sequence[Event]:
        """What the file says; it is read where it has changed."""
        found = self._path.stat()
        file = (found.st_ino, found.st_size, found.st_mtime_ns)
        if file != self._file:
            with self._path.open("rb") as stream:
                stream.seek(max(0, found.st_size - 2 * _MOST_BYTES))
                text = stream.read(2 * _MOST_BYTES).decode("ascii", errors="replace")
            events = list(_parsed(text, self._clock()))
            self._keep_what_was_shortened(events)
            self._known, self._file = events, file
        return self._known

    def _keep_what_was_shortened(self, events: Sequence[Event]) -> None:
        """A shortened file has lost what came before its first line: this member remembers it."""
        begins = [event for event in events if event[1] == _BEGINS]
        if begins and begins[-1] not in self._known:
            self._kept_s += share_of(self._name, self._known, begins[-1][0])

    def _try_to_note(self, sign: str, name: str) -> bool:
        try:
            self._note(sign, name, _LOCK_PATIENCE_S)
        except OSError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._is_in_trouble:
            log.warning("roster %s: %s; who was there last is taken to be there", self._path, error)
        self._is_in_trouble = True

    def _note(self, sign: str, name: str, patience_s: float) -> None:
        while True:
            with self._path.open("a", encoding="ascii") as stream:
                _lock(stream, patience_s)
                if os.fstat(stream.fileno()).st_nlink == 0:
                    continue  # the last member has just taken the file along
                stream.write(f"\n{self._clock():.6f} {sign} {name} {_END}")
                stream.flush()
                events = self._events()
                if not _present(events):
                    self._path.unlink()
                elif stream.tell() > _MOST_BYTES:
                    self._shorten(events)
                return

    def _shorten(self, events: Sequence[Event]) -> None:
        """Put a file with those who are there and the lowest powers in this one's place."""
        now = f"{self._clock():.6f}"
        lines = [f"{now} {_BEGINS} {self._name} {_END}"]
        lines += [
            f"{now} {_COMES} {name} {_END}"
            for name in sorted(_present(events))
            if self._is_alive(name)
        ]
        powers = self._powers(events)
        for domain in sorted({name for _, name, _ in powers}):
            watts, at_s = min((w, at_s) for at_s, name, w in powers if name == domain)
            lines.append(f"{at_s:.6f} {domain} {watts:.6f} {_END}")
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        new.write_text("\n".join(lines), encoding="ascii")
        new.replace(self._path)

    def _strike_off_the_dead(self, events: Sequence[Event]) -> Sequence[Event]:
        dead = [name for name in _present(events) if not self._is_alive(name)]
        for name in dead:
            self._try_to_note(_GOES, name)
        return self._events_or_rejoin() if dead else events


def _lock(stream: IO[str], patience_s: float) -> None:
    """Lock a file.

    Raises:
        BlockingIOError: somebody else does not let go of it.
    """
    until_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise
            time.sleep(_LOCK_RETRY_S)


def _parsed(text: str, now_s: float) -> Iterator[Event]:
    """Whole lines that mean something, of moments that have been."""
    for line in text.splitlines():
        words = line.split()
        if len(words) != _FIELDS or words[-1] != _END:
            continue  # a full disk or a kill may leave half of one
        at, sign, name, _ = words
        at_s = _number(at)
        is_told = sign in (_COMES, _GOES, _BEGINS) or _number(name) is not None
        if is_told and at_s is not None and at_s <= now_s + _LOOK_EVERY_S:
            yield at_s, sign, name


def _number(text: str) -> float | None:
    """A number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _present(events: Sequence[Event]) -> set[str]:
    present: set[str] = set()
    for _, sign, name in events:
        if sign == _COMES:
            present.add(name)
        elif sign == _GOES:
            present.discard(name)
    return present


def share_of(name: str, events: Sequence[Event], now_s: float) -> float:
    """Seconds of the floor that are `name`'s: the integral of 1 / (members) while it was there."""
    present: set[str] = set()
    since_s, total_s = 0.0, 0.0
    for at_s, sign, who in [*sorted(events, key=lambda event: event[0]), (now_s, "", "")]:
        if name in present:
            total_s += max(0.0, at_s - since_s) / len(present)
        since_s = at_s
        if sign == _COMES:
            present.add(who)
        elif sign == _GOES:
            present.discard(who)
    return total_s


def _identity(pid: int) -> str:
    """A process, told from a later one of the same number by when it began."""
    return f"{pid}:{_began(pid)}"


def _began(pid: int) -> str:
    """When a process began; one that has ended and is not waited for yet is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] in _ENDED else fields[19]
    except (OSError, IndexError):
        return "gone"


def _runs(name: str) -> bool:
    pid, _, began = name.partition(":")
    return pid.isdecimal() and _began(int(pid)) == began
