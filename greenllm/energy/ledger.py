"""The ledger: one SQLite row per request, and per server session the totals they must add up to.

Contract: `record` writes receipts and the session's totals in one transaction, so that at any
moment, also after kill -9,

    requests_j (sum of the session's final rows) + idle + load + train + unattributed + open
    = meter_j

A receipt replaces an earlier provisional one with the same id, never the other way round; of HTTP
statuses the last one that was sent stays. Rows that cannot be written now (locked, disk full) are
kept in memory and written with the next ones.
The only module that imports sqlite3. WAL with synchronous=NORMAL: a killed process loses nothing,
a power cut may lose the last moments.

Not covered: several servers writing one ledger at once beyond SQLite's locking; deletion.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from greenllm.core import GreenllmError
from greenllm.energy.account.totals import Totals
from greenllm.energy.receipt import Receipt

log = logging.getLogger(__name__)

GROUPS: dict[str, str] = {
    "model": "model",
    "adapter": "adapter",
    "key": "key",
    "outcome": "outcome",
    "endpoint": "endpoint",
    "hour": "strftime('%Y-%m-%dT%H:00Z', created_s, 'unixepoch')",
}
MAX_UNWRITTEN = 100_000

MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = []
migration = MIGRATIONS.append


@migration
def m001_initial(db: sqlite3.Connection) -> None:
    """Sessions and requests."""
    db.execute(
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, started_s REAL NOT NULL,"
        " updated_s REAL NOT NULL, closed INTEGER NOT NULL DEFAULT 0, method TEXT NOT NULL,"
        " measured INTEGER NOT NULL, meter_j REAL NOT NULL, load_j REAL NOT NULL,"
        " idle_j REAL NOT NULL, unattributed_j REAL NOT NULL, requests_j REAL NOT NULL,"
        " open_j REAL NOT NULL)"
    )
    db.execute(
        "CREATE TABLE requests (request_id TEXT PRIMARY KEY, session_id TEXT NOT NULL,"
        " model TEXT NOT NULL, adapter TEXT, key TEXT, endpoint TEXT NOT NULL,"
        " outcome TEXT NOT NULL, http_status INTEGER, created_s REAL NOT NULL,"
        " status TEXT NOT NULL, method TEXT NOT NULL, measured INTEGER NOT NULL,"
        " prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,"
        " completion_tokens INTEGER NOT NULL, duration_s REAL NOT NULL, resident_s REAL NOT NULL,"
        " active_j REAL, idle_j REAL, total_j REAL, prefill_j REAL, decode_j REAL,"
        " domains_j TEXT NOT NULL, flops REAL, uncertainty REAL, attribution TEXT NOT NULL,"
        " operational_g REAL, embodied_g REAL, gco2e REAL, intensity_g_per_kwh REAL,"
        " intensity_zone TEXT, intensity_source TEXT, intensity_year INTEGER, pue REAL)"
    )
    db.execute("CREATE INDEX requests_created ON requests (created_s)")
    db.execute("CREATE INDEX requests_session ON requests (session_id)")


@migration
def m002_speculation(db: sqlite3.Connection) -> None:
    """Draft tokens and what they cost; there were none before."""
    db.execute("ALTER TABLE requests ADD COLUMN drafted_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE requests ADD COLUMN accepted_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE requests ADD COLUMN draft_j REAL")
    db.execute("UPDATE requests SET draft_j = 0 WHERE active_j IS NOT NULL")


@migration
def m003_parameters(db: sqlite3.Connection) -> None:
    """How large the model of a session is; of older ones it is not known."""
    db.execute("ALTER TABLE sessions ADD COLUMN parameters INTEGER")


@migration
def m004_approximation(db: sqlite3.Connection) -> None:
    """Answers whose tokens may have left the model early; there were none before."""
    db.execute("ALTER TABLE requests ADD COLUMN approximate INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE requests ADD COLUMN mean_layers REAL")
    db.execute("ALTER TABLE requests ADD COLUMN agreement_target REAL")


@migration
def m005_training(db: sqlite3.Connection) -> None:
    """Joules of fine-tuning beside a server; there was none before."""
    db.execute("ALTER TABLE sessions ADD COLUMN train_j REAL NOT NULL DEFAULT 0")


@migration
def m006_asked_model(db: sqlite3.Connection) -> None:
    """The name a client used, beside the official one; of older requests it is not known."""
    db.execute("ALTER TABLE requests ADD COLUMN asked_model TEXT")


_COLUMNS = [f.name for f in fields(Receipt)]
_DERIVED = ("total_j", "gco2e")
_ALL = [*_COLUMNS, *_DERIVED]
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


class LedgerError(GreenllmError):
    """The ledger file cannot be used; the message says why and what to do."""


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

    `unmetered` counts the others: refused, provisional, without a meter. Tokens that were lost with
    their server are not counted as generated: nobody got them. `metered_tokens` are those of final
    receipts, so that tokens that nobody metered do not make joules per token small; `running_s` is
    the machine's time that these took.
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
    )
)


class Ledger:
    """An open ledger file. `record` and the queries may be called from different threads."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = path
        self._unwritten: list[tuple[str, Receipt]] = []
        self._read_only = read_only
        self._reading = threading.Lock()
        try:
            if not read_only:
                self._db = _open(str(path))
                _prepare(self._db)
            self._reader = _open(f"file:{quote(str(path))}?mode=ro")
            if 0 < _version(self._reader) < len(MIGRATIONS):
                self._reader.close()
                raise LedgerError(
                    f"ledger {path} is of an older greenllm; `greenllm serve` brings it up to date"
                )
            self._query("SELECT count(*) FROM requests")
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"ledger {path}: {error}; move the file away or choose another --data-dir"
            ) from error

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def open_session(
        self, session_id: str, *, method: str, measured: bool, parameters: int | None = None
    ) -> None:
        """Begin a session; its totals start at zero.

        Raises:
            LedgerError: the file is locked or cannot be written.
        """
        now_s = time.time()
        try:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?, 0, ?, ?, 0, 0, 0, 0, 0, 0, ?, 0)",
                    (session_id, now_s, now_s, method, measured, parameters),
                )
        except sqlite3.Error as error:
            raise LedgerError(f"ledger {self.path}: cannot begin a session: {error}") from error

    def record(
        self,
        session_id: str,
        receipts: Sequence[Receipt],
        totals: Totals | None = None,
        *,
        closed: bool = False,
    ) -> None:
        """Write receipts and the session's totals; what a busy or full disk refuses waits."""
        self._unwritten += [(session_id, receipt) for receipt in receipts]
        try:
            with self._transaction() as db:
                db.executemany(_UPSERT, [_values(*item) for item in self._unwritten])
                if totals is not None:
                    _update_session(db, session_id, totals, closed)
        except sqlite3.Error as error:
            del self._unwritten[:-MAX_UNWRITTEN]
            log.error("ledger %s: %s; %d rows wait", self.path, error, len(self._unwritten))
        else:
            self._unwritten.clear()

    def receipt(self, request_id: str) -> Receipt | None:
        """One request's receipt, newest state; None when it is not known."""
        for _, waiting in reversed(self._unwritten):
            if waiting.request_id == request_id:
                return waiting
        columns = ", ".join(_COLUMNS)
        found = self._query(f"SELECT {columns} FROM requests WHERE request_id = ?", (request_id,))
        return _receipt(found[0]) if found else None

    def receipts(self, *, since_s: float = 0.0, until_s: float = 1e12) -> list[Receipt]:
        """All receipts of a period, oldest first."""
        columns = ", ".join(_COLUMNS)
        rows = self._query(
            f"SELECT {columns} FROM requests WHERE created_s >= ? AND created_s < ?"
            " ORDER BY created_s, request_id",
            (since_s, until_s),
        )
        return [_receipt(row) for row in rows]

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
        """Close the file."""
        self._reader.close()
        if not self._read_only:
            self._db.close()


def _open(target: str) -> sqlite3.Connection:
    return sqlite3.connect(
        target,
        uri=target.startswith("file:"),
        timeout=1.0,
        check_same_thread=False,
        isolation_level=None,
    )


def _prepare(db: sqlite3.Connection) -> None:
    """Bring an older file up to date; a newer one is refused, not touched."""
    version = _version(db)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    if version < len(MIGRATIONS):
        _migrate(db)


def _version(db: sqlite3.Connection) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"written by a newer greenllm (schema {version})")
    return version


def _migrate(db: sqlite3.Connection) -> None:
    """Run what is missing, under a lock: another server may be starting on the same file."""
    db.execute("BEGIN IMMEDIATE")
    for migrate in MIGRATIONS[_version(db) :]:
        migrate(db)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")


def _update_session(db: sqlite3.Connection, session_id: str, totals: Totals, closed: bool) -> None:
    columns = asdict(totals)
    assignments = ", ".join(f"{name} = :{name}" for name in columns)
    db.execute(
        f"UPDATE sessions SET updated_s = :now_s, closed = :closed, {assignments}"
        " WHERE session_id = :session_id",
        {**columns, "now_s": time.time(), "closed": closed, "session_id": session_id},
    )


def _values(session_id: str, receipt: Receipt) -> list[Any]:
    values: dict[str, Any] = {name: getattr(receipt, name) for name in _COLUMNS}
    values["domains_j"] = json.dumps(dict(receipt.domains_j))
    return [session_id, *values.values(), receipt.total_j, receipt.gco2e]


def _receipt(row: Sequence[Any]) -> Receipt:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["domains_j"] = json.loads(values["domains_j"])
    values |= {name: bool(values[name]) for name in ("measured", "approximate")}
    return Receipt(**values)
