"""Writes the ledger on a thread of its own, so that a disk never holds the engine up.

Contract: entries are written in the order in which they came, a bounded number of rows in one
transaction. What cannot be written now (a full disk, a file that is locked elsewhere) waits in
memory and is tried again, less and less often; the log has a line when this begins and one when it
ends. When more than `MAX_WAITING` rows wait, the oldest are dropped and counted. So is a row that
SQLite refuses, alone and by its name: those after it are written. A file that was moved or deleted
is noticed with the next entry: the new one gets the sessions and the rows that are known.

Not covered: what waits when the process is killed is lost.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from greenllm.energy.ledger_connection import LedgerConnection
from greenllm.energy.ledger_rows import Entry, SessionStart, begin_session, write
from greenllm.energy.ledger_schema import transaction
from greenllm.energy.receipt import Receipt

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_WAITING = 100_000
_ROWS_AT_ONCE = 256
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Rows that wait, rows that were dropped so far, and whether the last attempt succeeded."""

    num_waiting: int = 0
    num_dropped: int = 0
    is_writable: bool = True


class LedgerWriter:
    """See the module. Its methods may be called from any thread."""

    def __init__(self, connection: LedgerConnection) -> None:
        self.state = LedgerState()
        self._connection = connection
        connection.on_new_file = self._begin_new_file
        self._sessions: dict[str, SessionStart] = {}
        self._last: dict[str, Entry] = {}
        # What follows, and the state, is guarded by this.
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Entry]] = deque()
        self._num_put = self._num_written = 0
        self._is_late = self._is_urgent = self._is_closing = False
        self._thread: threading.Thread | None = None

    def put(self, entry: Entry) -> int:
        """Have an entry written; returns its number, for `keep_up`."""
        with self._changed:
            self._num_put += 1
            self._waiting.append((self._num_put, self._merged(entry)))
            self._count(waiting=len(entry.receipts))
            self._drop_the_oldest()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self._num_put

    def _merged(self, entry: Entry) -> Entry:
        """Totals alone join what waits of their session, so that they never pile up.

        That is the entry which waits last, or totals that wait before those of other sessions. It
        may be on its way: writing its rows again changes nothing.
        """
        place = None if entry.receipts else self._last_place(entry.session_id)
        if place is None:
            return entry
        _, last = self._waiting[place]
        if last.receipts and place < len(self._waiting) - 1:
            return entry  # its number says that its rows are written before those that follow
        del self._waiting[place]
        return replace(
            last,
            totals=entry.totals or last.totals,
            closed=entry.closed,
            if_lost=last.if_lost if entry.if_lost is None else entry.if_lost,
        )

    def _last_place(self, session_id: str) -> int | None:
        places = range(len(self._waiting) - 1, -1, -1)
        return next((i for i in places if self._waiting[i][1].session_id == session_id), None)

    def _drop_the_oldest(self) -> None:
        is_first = not self.state.num_dropped
        while self.state.num_waiting > MAX_WAITING and len(self._waiting) > 1:
            _, entry = self._waiting.popleft()
            self._count(waiting=-len(entry.receipts), dropped=len(entry.receipts))
        if is_first and self.state.num_dropped:
            log.error("ledger %s: too many rows wait; the oldest are dropped", self._path)

    def _count(self, *, waiting: int = 0, dropped: int = 0) -> None:
        self.state = replace(
            self.state,
            num_waiting=self.state.num_waiting + waiting,
            num_dropped=self.state.num_dropped + dropped,
        )

    @property
    def _path(self) -> str:
        return str(self._connection.path)

    def find(self, request_id: str) -> Receipt | None:
        """A receipt that waits: the final one, else the newest."""
        with self._changed:
            waiting = tuple(self._waiting)
        found = [r for _, entry in waiting for r in entry.receipts if r.request_id == request_id]
        final = [receipt for receipt in found if receipt.status == "final"]
        return final[-1] if final else found[-1] if found else None

    def flush(self, timeout_s: float) -> bool:
        """Try at once, and wait until all that waits now is written."""
        with self._changed:
            number = self._num_put
            self._is_urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._num_written >= number, timeout_s)

    def keep_up(self, number: int, timeout_s: float) -> None:
        """Wait until an entry is written, unless that is known to take longer."""
        with self._changed:
            if not self._is_late:
                self._is_late = not self._changed.wait_for(
                    lambda: self._num_written >= number or self._is_late, timeout_s
                )

    def begin(self, start: SessionStart) -> None:
        """Begin a session at once.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self.do(lambda db: begin_session(db, start))
        self._sessions[start.session_id] = start

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write something at once, in a transaction of its own.

        Raises:
            sqlite3.Error: it cannot be written.
        """

        def whole(db: sqlite3.Connection) -> T:
            with transaction(db):
                return work(db)

        return self._connection.write(whole)

    def close(self, timeout_s: float) -> None:
        """Write what waits, as far as it can be, and end the thread."""
        if not self.flush(timeout_s):
            log.error("ledger %s: %d rows are lost", self._path, self.state.num_waiting)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while batch := self._batch():
            entries = [entry for _, entry in batch]
            try:
                refused = self._connection.write(partial(write, entries=entries))
            except Exception as error:
                self._pause(error, pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._has_written(batch, refused)
                pause_s = _FIRST_PAUSE_S

    def _batch(self) -> list[tuple[int, Entry]]:
        """The oldest entries, with a bounded number of rows; none when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            batch: list[tuple[int, Entry]] = []
            num_rows = 0
            for number, entry in () if self._is_closing else self._waiting:
                num_rows += len(entry.receipts)
                if batch and num_rows > _ROWS_AT_ONCE:
                    break
                batch.append((number, entry))
            return batch

    def _pause(self, error: Exception, pause_s: float) -> None:
        with self._changed:
            if self.state.is_writable:
                log.error("ledger %s: %s; rows wait until it can be written", self._path, error)
            self.state = replace(self.state, is_writable=False)
            self._is_late, self._is_urgent = True, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_urgent or self._is_closing, pause_s)

    def _has_written(self, batch: list[tuple[int, Entry]], refused: list[str]) -> None:
        for refusal in refused:
            log.error("ledger %s: SQLite refuses %s; it is left out", self._path, refusal)
        self._last |= {
            entry.session_id: replace(entry, receipts=())
            for _, entry in batch
            if entry.totals is not None
        }
        with self._changed:
            self._num_written = batch[-1][0]
            while self._waiting and self._waiting[0][0] <= self._num_written:
                self._count(waiting=-len(self._waiting.popleft()[1].receipts))
            if not self.state.is_writable:
                log.warning("ledger %s: can be written again", self._path)
            self.state = replace(self.state, is_writable=True)
            self._count(dropped=len(refused))
            self._is_late = self._is_late and bool(self._waiting)
            self._changed.notify_all()

    def _begin_new_file(self, db: sqlite3.Connection) -> None:
        """Put into a new file what is known of the sessions that run."""
        with transaction(db):
            for start in self._sessions.values():
                begin_session(db, start)
        write(db, list(self._last.values()))
