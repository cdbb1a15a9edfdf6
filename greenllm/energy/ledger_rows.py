"""How receipts and totals become rows of the ledger, and rows receipts.

Contract: `write` puts rows and the totals that they belong to into one transaction. A row that
SQLite refuses is left out and named; any other error leaves the file as it was. `book_lost` turns
what a session has noted of its open requests into rows, and closes it: the sums still hold.

Not covered: when anything is written (see `ledger_writer`).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger_schema import transaction
from greenllm.energy.receipt import Receipt

COLUMNS = tuple(f.name for f in fields(Receipt))
_MAPPINGS = ("domains_j", "metadata")
_ALL = (*COLUMNS, "total_j", "gco2e")
_SENT = "http_status = coalesce(excluded.http_status, requests.http_status)"
_KEPT = "{0} = CASE requests.status WHEN 'final' THEN requests.{0} ELSE excluded.{0} END"
_UPSERT = (
    "INSERT INTO requests (session_id, {names}) VALUES (?, {marks})"
    " ON CONFLICT (request_id) DO UPDATE SET {updates}"
).format(
    names=", ".join(_ALL),
    marks=", ".join("?" * len(_ALL)),
    updates=", ".join(_SENT if name == "http_status" else _KEPT.format(name) for name in _ALL),
)


@dataclass(frozen=True, slots=True)
class SessionStart:
    """What is known of a session when it begins."""

    session_id: str
    started_s: float
    method: str
    measured: bool
    parameters: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written together: receipts, and the session's totals that hold with them.

    `if_lost` are the receipts of its open requests should the process be lost; None leaves what was
    noted before.
    """

    session_id: str
    receipts: tuple[Receipt, ...] = ()
    totals: Totals | None = None
    closed: bool = False
    if_lost: tuple[Receipt, ...] | None = None


def begin_session(db: sqlite3.Connection, start: SessionStart) -> None:
    """Add a session whose totals are zero, unless it is there."""
    db.execute(
        "INSERT OR IGNORE INTO sessions (session_id, started_s, updated_s, method, measured,"
        " parameters, meter_j, load_j, idle_j, unattributed_j, requests_j, open_j)"
        " VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, 0)",
        (
            *(start.session_id, start.started_s, start.started_s),
            *(start.method, start.measured, start.parameters),
        ),
    )


def write(db: sqlite3.Connection, entries: Sequence[Entry]) -> list[str]:
    """Write entries in one transaction; what SQLite refuses is left out and returned, named.

    Raises:
        sqlite3.Error: nothing was written: the file is locked, the disk is full or the like.
    """
    try:
        with transaction(db):
            for entry in entries:
                db.executemany(_UPSERT, [_values(entry.session_id, r) for r in entry.receipts])
                _update_session(db, entry)
    except Exception as error:
        if not _is_refusal(error):
            raise
    else:
        return []
    with transaction(db):
        return [refusal for entry in entries for refusal in _write_each(db, entry)]


def _write_each(db: sqlite3.Connection, entry: Entry) -> Iterator[str]:
    """Write row by row; a statement that is refused changes nothing."""
    for receipt in entry.receipts:
        try:
            db.execute(_UPSERT, _values(entry.session_id, receipt))
        except Exception as error:
            if not _is_refusal(error):
                raise
            yield f"request {receipt.request_id}: {error}"
    try:
        _update_session(db, entry)
    except Exception as error:
        if not _is_refusal(error):
            raise
        yield f"totals of session {entry.session_id}: {error}"


def _is_refusal(error: Exception) -> bool:
    """Whether the data are at fault, so that another try would not help."""
    refusals = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
    if isinstance(error, sqlite3.DatabaseError):
        return isinstance(error, refusals)
    return True  # it could not even be given to SQLite


def _update_session(db: sqlite3.Connection, entry: Entry) -> None:
    if entry.totals is None:
        return
    columns = asdict(entry.totals)
    assignments = ", ".join(f"{name} = :{name}" for name in columns)
    known = entry.if_lost
    db.execute(
        f"UPDATE sessions SET updated_s = :now_s, closed = :closed, {assignments},"
        " if_lost = iif(:closed, NULL, coalesce(:if_lost, if_lost))"
        " WHERE session_id = :session_id",
        {
            **columns,
            "now_s": time.time(),
            "closed": entry.closed,
            "session_id": entry.session_id,
            "if_lost": None if known is None else json.dumps([_known(one) for one in known]),
        },
    )


def book_lost(db: sqlite3.Connection, session_id: str, opened: Sequence[str] = ()) -> list[str]:
    """Close a session whose process is gone; ids of the requests that it had open.

    `opened` are lines of `line_of` about requests that it may not have noted.
    Their rows have the joules up to the last note. What its totals have beyond that as open stays
    open: it was theirs, and nobody knows whose of them.
    """
    found = db.execute(
        "SELECT if_lost, requests_j, open_j, unattributed_j FROM sessions"
        " WHERE session_id = ? AND NOT closed",
        (session_id,),
    ).fetchone()
    if found is None:
        return []
    noted, requests_j, open_j, unattributed_j = found
    known = [Receipt(**one) for one in json.loads(noted or "[]")]
    # What was noted later says more than what was said when the request came.
    by_id = {receipt.request_id: receipt for receipt in (*receipts_of(opened), *known)}
    lost = [receipt for one in by_id.values() if (receipt := _lost(db, one))]
    db.executemany(_UPSERT, [_values(session_id, receipt) for receipt in lost])
    lost_j = sum(receipt.total_j or 0.0 for receipt in lost if receipt.status == "final")
    # A request that was given up meanwhile is not among the open ones any more.
    from_open_j = min(lost_j, max(open_j, 0.0))
    db.execute(
        "UPDATE sessions SET closed = 1, if_lost = NULL, requests_j = ?, open_j = ?,"
        " unattributed_j = ? WHERE session_id = ?",
        (
            requests_j + lost_j,
            open_j - from_open_j,
            unattributed_j - (lost_j - from_open_j),
            session_id,
        ),
    )
    return [receipt.request_id for receipt in lost]


def line_of(receipt: Receipt) -> str:
    """A receipt as a line, for `receipts_of`."""
    return json.dumps(_known(receipt))


def receipts_of(lines: Sequence[str]) -> Iterator[Receipt]:
    """The receipts of lines; what a kill has cut off is left out."""
    for line in lines:
        with suppress(ValueError, TypeError):
            yield Receipt(**json.loads(line))


def _lost(db: sqlite3.Connection, noted: Receipt) -> Receipt | None:
    """A request's last receipt, unless it has one; with what its client has been told."""
    row = db.execute(
        "SELECT status, outcome, completion_tokens, duration_s FROM requests WHERE request_id = ?",
        (noted.request_id,),
    ).fetchone()
    if row is None:
        return noted
    status, outcome, tokens, duration_s = row
    if status != "provisional" or noted.status == "provisional":
        return None
    return replace(noted, outcome=outcome, completion_tokens=tokens, duration_s=duration_s)


def _known(receipt: Receipt) -> dict[str, Any]:
    """The fields that are not None, for JSON."""
    values = {name: getattr(receipt, name) for name in COLUMNS}
    values |= {name: dict(values[name]) for name in _MAPPINGS}
    return {name: value for name, value in values.items() if value is not None}


def _values(session_id: str, receipt: Receipt) -> list[Any]:
    values: dict[str, Any] = {name: getattr(receipt, name) for name in COLUMNS}
    values |= {name: json.dumps(dict(values[name])) for name in _MAPPINGS}
    return [session_id, *values.values(), receipt.total_j, receipt.gco2e]


def receipt_of(row: Sequence[Any]) -> Receipt:
    """The receipt of a row with `COLUMNS`."""
    values = dict(zip(COLUMNS, row, strict=True))
    values |= {name: json.loads(values[name]) for name in _MAPPINGS}
    values |= {name: bool(values[name]) for name in ("measured", "approximate")}
    return Receipt(**values)
