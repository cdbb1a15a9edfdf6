"""The ledger: one SQLite row per request, and per server session the totals they must add up to.

Contract: `record` takes receipts and the session's totals, which are written in one transaction, so
that at any moment, also after kill -9,

    requests_j (sum of the session's final rows) + idle + load + train + unattributed + open
    = meter_j

holds in the file. A receipt replaces an earlier provisional one with the same id, never the other
way round; of HTTP statuses the last one that was sent stays.
A thread writes (see `ledger_writer`). `record` waits for it as long as the disk keeps up, and no
longer than `_PATIENCE_S`: then rows wait in memory, and records cost nothing. Reads see what was
recorded: `receipt` looks among the rows that wait, and sums have them written first, for at most
`_FLUSH_S`.
A killed process loses what waits, usually nothing. Of its open requests `if_lost` was noted with
its totals; `book_lost`, at the next start, makes rows with the outcome `lost` of it. WAL with
synchronous=NORMAL: a power cut may lose the last moments.

Not covered: several servers writing one ledger at once beyond SQLite's locking; deletion; what open
requests used since the last note, which is on no row (in the totals it stays open).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger_connection import LedgerConnection
from greenllm.energy.ledger_rows import (
    COLUMNS,
    Entry,
    SessionStart,
    book_lost,
    line_of,
    receipt_of,
)
from greenllm.energy.ledger_schema import LedgerError
from greenllm.energy.ledger_writer import LedgerState, LedgerWriter
from greenllm.energy.receipt import Receipt
from greenllm.energy.session_lock import SessionLock, hold, take_over

log = logging.getLogger(__name__)

GROUPS: dict[str, str] = {
    "model": "model",
    "adapter": "adapter",
    "key": "key",
    "team": "team",
    "user": "user",
    "outcome": "outcome",
    "endpoint": "endpoint",
    "hour": "strftime('%Y-%m-%dT%H:00Z', created_s, 'unixepoch')",
}
_PATIENCE_S = 0.1
_FLUSH_S = 1.0
_LAST_FLUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a server: what its meter counted and where it went, and the size of its model."""

    session_id: str
    started_s: float
    updated_s: float
    closed: bool
    method: str
    measured: bool
    totals: Totals
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Sums of a group of requests; joules are those of final receipts, None when there is none.

    `unmetered` counts the others: provisional, without a meter, or refused; `refused` the last of
    these by themselves. Tokens that were lost with their server are not counted as generated:
    nobody got them. `metered_tokens` are those of final receipts, so that tokens that nobody
    metered do not make joules per token small; `running_s` is the machine's time that these took.
    """

    group: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    active_j: float | None = None
    total_j: float | None = None
    gco2e: float | None = None
    unmetered: int = 0
    idle_j: float | None = None
    draft_j: float | None = None
    flops: float | None = None
    running_s: float | None = None
    metered_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    refused: int = 0

    @property
    def joules_per_token(self) -> float | None:
        """Total joules per completion token of the metered requests."""
        return _ratio(self.total_j, self.metered_tokens)

    @property
    def acceptance(self) -> float | None:
        """Draft tokens that were accepted over all draft tokens."""
        return _ratio(self.accepted_tokens, self.drafted_tokens)

    @property
    def avg_power_w(self) -> float | None:
        """Total joules over the machine's time."""
        return _ratio(self.total_j, self.running_s)


def _ratio(value: float | None, count: float | None) -> float | None:
    return None if value is None or not count else value / count


# What each sum of a row after its group is, in SQL.
_SUMS = ", ".join(
    (
        "count(*)",
        "coalesce(sum(prompt_tokens), 0)",
        "coalesce(sum(iif(outcome = 'lost', 0, completion_tokens)), 0)",
        *(f"sum(iif(status = 'final', {name}, NULL))" for name in ("active_j", "total_j", "gco2e")),
        "coalesce(sum(status != 'final'), 0)",
        *(
            f"sum(iif(status = 'final', {name}, NULL))"
            for name in ("idle_j", "draft_j", "flops", "resident_s")
        ),
        "coalesce(sum(iif(status = 'final' AND outcome != 'lost', completion_tokens, 0)), 0)",
        "coalesce(sum(drafted_tokens), 0)",
        "coalesce(sum(accepted_tokens), 0)",
        "coalesce(sum(status != 'final' AND outcome = 'refused'), 0)",
    )
)


class Ledger:
    """An open ledger file. `record` and the queries may be called from different threads."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open the file, and make it unless it is only read.

        Raises:
            LedgerError: it cannot be used.
        """
        self.path = path
        self._connection = LedgerConnection(path, read_only=read_only)
        self._writer = None if read_only else LedgerWriter(self._connection)
        self._locks: dict[str, SessionLock] = {}

    @property
    def state(self) -> LedgerState:
        """Whether it can be written, and what waits."""
        return LedgerState() if self._writer is None else self._writer.state

    @property
    def _written(self) -> LedgerWriter:
        if self._writer is None:
            raise LedgerError(f"ledger {self.path} was opened to be read")
        return self._writer

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows, with all that was recorded before; where it cannot be written, without."""
        if self._writer is not None:
            self._writer.flush(_FLUSH_S)
        return self._connection.query(sql, values)

    def open_session(
        self,
        session_id: str,
        *,
        method: str,
        measured: bool,
        parameters: int | None = None,
        is_own: bool = True,
    ) -> None:
        """Begin a session; its totals start at zero. `is_own`: it ends with this process.

        Raises:
            LedgerError: the file is locked or cannot be written.
        """
        lock = hold(Path(self.path), session_id) if is_own else None
        try:
            start = SessionStart(session_id, time.time(), method, measured, parameters)
            self._written.begin(start)
        except sqlite3.Error as error:
            if lock is not None:
                lock.release()
            raise LedgerError(f"ledger {self.path}: cannot begin a session: {error}") from error
        if lock is not None:
            self._locks[session_id] = lock

    def record(
        self,
        session_id: str,
        receipts: Sequence[Receipt],
        totals: Totals | None = None,
        *,
        closed: bool = False,
        if_lost: Sequence[Receipt] | None = None,
    ) -> None:
        """Have receipts and the session's totals written together; see the module.

        `if_lost` are receipts of the session's open requests, should its process die from now on.
        """
        known = None if totals is None else replace(totals)
        lost = None if if_lost is None else tuple(if_lost)
        number = self._written.put(Entry(session_id, tuple(receipts), known, closed, lost))
        if receipts or closed:
            self._written.keep_up(number, _PATIENCE_S)
        self._forget_opened(session_id, (*receipts, *(lost or ())))

    def opened(self, session_id: str, if_lost: Receipt) -> None:
        """Keep a request's receipt, should its process die before the ledger hears of it again.

        For requests whose clients are told their ids at once. It costs a line in a file.
        """
        lock = self._locks.get(session_id)
        if lock is not None:
            with suppress(OSError):  # on a full disk it has a row with the next note
                lock.note(if_lost.request_id, line_of(if_lost))

    def _forget_opened(self, session_id: str, receipts: Iterable[Receipt]) -> None:
        lock = self._locks.get(session_id)
        if lock is not None:
            with suppress(OSError):
                lock.forget(receipt.request_id for receipt in receipts)

    def book_lost(self) -> None:
        """Close the sessions whose process is gone, and give their open requests rows.

        One that cannot be closed now is left for the next time.
        """
        for session in self.sessions():
            lock = None if session.closed else take_over(Path(self.path), session.session_id)
            if lock is None:
                continue
            try:
                lost = self.close_lost(session.session_id, lock.lines())
                lock.release()
            except LedgerError as error:
                log.warning("%s", error)
                lock.leave()
            else:
                text = "session %s was not closed: its process is gone, with %d requests"
                log.warning(text, session.session_id, len(lost))

    def close_lost(self, session_id: str, opened: Sequence[str] = ()) -> list[str]:
        """Close a session whose process is gone; ids of the requests that were lost with it.

        `opened` are the lines that `opened` has left.

        Raises:
            LedgerError: the file is locked or cannot be written.
        """
        if not self._written.flush(_FLUSH_S):
            # Written afterwards, they would open the session again.
            raise LedgerError(f"ledger {self.path}: session {session_id}: rows wait to be written")
        try:
            return self._written.do(lambda db: book_lost(db, session_id, opened))
        except sqlite3.Error as error:
            raise LedgerError(f"ledger {self.path}: session {session_id}: {error}") from error

    def receipt(self, request_id: str) -> Receipt | None:
        """One request's receipt, newest state; None when it is not known."""
        waiting = None if self._writer is None else self._writer.find(request_id)
        if waiting is not None:
            return waiting
        columns = ", ".join(COLUMNS)
        sql = f"SELECT {columns} FROM requests WHERE request_id = ?"
        found = self._connection.query(sql, (request_id,))
        return receipt_of(found[0]) if found else None

    def receipts(self, *, since_s: float = 0.0, until_s: float = 1e12) -> list[Receipt]:
        """All receipts of a period, oldest first."""
        columns = ", ".join(COLUMNS)
        rows = self._query(
            f"SELECT {columns} FROM requests WHERE created_s >= ? AND created_s < ?"
            " ORDER BY created_s, request_id",
            (since_s, until_s),
        )
        return [receipt_of(row) for row in rows]

    def sums(
        self,
        group_by: str | None = None,
        *,
        since_s: float = 0.0,
        until_s: float = 1e12,
        key: str | None = None,
    ) -> list[GroupSums]:
        """Sums per group, or one row of everything; of one key's requests where it is given."""
        group = GROUPS[group_by] if group_by else "NULL"
        rows = self._query(
            f"SELECT {group} AS grp, {_SUMS}"
            " FROM requests WHERE created_s >= ? AND created_s < ? AND (? IS NULL OR key = ?)"
            " GROUP BY grp ORDER BY grp",
            (since_s, until_s, key, key),
        )
        return [GroupSums(*row) for row in rows]

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        rows = self._query(
            "SELECT session_id, started_s, updated_s, closed, method, measured, parameters,"
            " meter_j, load_j, idle_j, unattributed_j, requests_j, open_j, train_j FROM sessions"
            " ORDER BY started_s"
        )
        return [
            Session(
                session_id=row[0],
                started_s=row[1],
                updated_s=row[2],
                closed=bool(row[3]),
                method=row[4],
                measured=bool(row[5]),
                parameters=row[6],
                totals=Totals(*row[7:]),
            )
            for row in rows
        ]

    def model_sizes(self, *, since_s: float = 0.0, until_s: float = 1e12) -> set[int | None]:
        """Parameters of the models behind the final rows of a period; None where not known."""
        rows = self._query(
            "SELECT DISTINCT parameters FROM requests JOIN sessions USING (session_id)"
            " WHERE requests.status = 'final' AND created_s >= ? AND created_s < ?",
            (since_s, until_s),
        )
        return {row[0] for row in rows}

    def session_sum_j(self, session_id: str) -> float:
        """Total joules of a session's final rows."""
        found = self._query(
            "SELECT coalesce(sum(total_j), 0) FROM requests"
            " WHERE session_id = ? AND status = 'final'",
            (session_id,),
        )
        return float(found[0][0])

    def close(self) -> None:
        """Write what waits, as far as it can be, and close the file."""
        if self._writer is not None:
            self._writer.close(_LAST_FLUSH_S)
        self._let_go()
        self._connection.close()

    def _let_go(self) -> None:
        """Sessions that are not closed are left for whoever looks for the lost."""
        closed: set[str] = set()
        with suppress(sqlite3.Error):
            rows = self._connection.query("SELECT session_id FROM sessions WHERE closed")
            closed = {row[0] for row in rows}
        for session_id, lock in self._locks.items():
            if session_id in closed:
                lock.release()
            else:
                lock.leave()
