"""The tables of the ledger's file, and the numbered migrations that bring older files up to date.

Contract: `prepare` runs what a file has not had, once, under a lock; a newer file is refused and
not touched. A migration never changes what an earlier one has written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from greenllm.core import GreenllmError

BUSY_S = 1.0
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


@migration
def m007_if_lost(db: sqlite3.Connection) -> None:
    """The receipts of a session's open requests, should its process be lost."""
    db.execute("ALTER TABLE sessions ADD COLUMN if_lost TEXT")


@migration
def m008_labels(db: sqlite3.Connection) -> None:
    """Who else a request is for, beside its key; of older requests it is not known."""
    db.execute("ALTER TABLE requests ADD COLUMN team TEXT")
    db.execute("ALTER TABLE requests ADD COLUMN user TEXT")
    db.execute("ALTER TABLE requests ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}'")
    db.execute("CREATE INDEX requests_key ON requests (key, created_s)")


class LedgerError(GreenllmError):
    """The ledger file cannot be used; the message says why and what to do."""


def connect(target: str) -> sqlite3.Connection:
    """A connection that several threads may use, one at a time."""
    return sqlite3.connect(
        target,
        uri=target.startswith("file:"),
        timeout=BUSY_S,
        check_same_thread=False,
        isolation_level=None,
    )


def prepare(db: sqlite3.Connection) -> None:
    """Bring an older file up to date; a newer one is refused, not touched."""
    version = version_of(db)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    if version < len(MIGRATIONS):
        _migrate(db)


def version_of(db: sqlite3.Connection) -> int:
    """How many migrations a file has had; one with more than there are is refused."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"written by a newer greenllm (schema {version})")
    return version


def is_old(db: sqlite3.Connection) -> bool:
    """Whether migrations are missing; an empty file is not old."""
    return 0 < version_of(db) < len(MIGRATIONS)


def _migrate(db: sqlite3.Connection) -> None:
    """Run what is missing, under a lock: another server may be starting on the same file."""
    with transaction(db):
        for migrate in MIGRATIONS[version_of(db) :]:
            migrate(db)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Everything in it, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
