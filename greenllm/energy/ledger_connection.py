"""Two connections to a ledger's file, one that writes and one that reads, and the file they follow.

Contract: each connection is used by one thread at a time. Before anything is written, the path is
looked at: where it leads to another file than the one that is open (it was moved, deleted or
replaced), both connections let go of the old file, with all that was written in it, and begin the
new one. A file that was overwritten in its place is not written to: SQLite would go on beside what
is there now, and those rows would be lost with it.

A write that hangs (a network disk) does not keep `close` for longer than `_PATIENCE_S`.

Not covered: SQLite keeps two more files by the name of the first; whoever replaces a ledger while
another process has it open mixes them up.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from greenllm.energy.ledger_schema import LedgerError, connect, is_old, prepare, version_of

log = logging.getLogger(__name__)
T = TypeVar("T")

_BESIDE = ("-wal", "-shm")
_PATIENCE_S = 5.0


class LedgerConnection:
    """See the module."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open the file, and make it unless it is only read.

        Raises:
            LedgerError: it cannot be used.
        """
        self.path = Path(path)
        self.on_new_file: Callable[[sqlite3.Connection], None] = lambda db: None
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        try:
            if not read_only:
                self._open_db()
            self._open_reader()
        except sqlite3.DatabaseError as error:
            self.close()
            raise LedgerError(
                f"ledger {path}: {error}; move the file away or choose another --data-dir"
            ) from error

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows."""
        with self._reading:
            return (self._reader or self._open_reader()).execute(sql, values).fetchall()

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have the writing connection for a moment.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        with self._writing:
            if self._db is not None and _identity(self.path) != self._file:
                self._leave_the_file()
            elif self._db is not None and _is_overwritten(self.path):
                raise sqlite3.DatabaseError("it was overwritten with something else; move it away")
            return work(self._db or self._begin_file())

    def close(self) -> None:
        """Close both; the writing one last, for it to tidy up."""
        for lock, connection in ((self._reading, self._reader), (self._writing, self._db)):
            if not lock.acquire(timeout=_PATIENCE_S):
                log.error("ledger %s: the disk does not answer; it is left open", self.path)
                continue
            try:
                if connection is not None:
                    connection.close()
            finally:
                lock.release()

    def _begin_file(self) -> sqlite3.Connection:
        db = self._open_db()
        try:
            self.on_new_file(db)
        except BaseException:
            db.close()
            self._db = None
            raise
        return db

    def _open_db(self) -> sqlite3.Connection:
        db = connect(str(self.path))
        try:
            prepare(db)
        except BaseException:
            db.close()
            raise
        self._db, self._file = db, _identity(self.path)
        return db

    def _open_reader(self) -> sqlite3.Connection:
        reader = connect(f"file:{quote(str(self.path))}?mode=ro")
        try:
            if is_old(reader):
                raise LedgerError(
                    f"ledger {self.path} is of an older greenllm;"
                    " `greenllm serve` brings it up to date"
                )
            reader.execute("SELECT count(*) FROM requests").fetchall()
        except BaseException:
            reader.close()
            raise
        self._reader = reader
        return reader

    def _leave_the_file(self) -> None:
        log.error(
            "ledger %s was moved, deleted or replaced: the rows so far are where it is now; the"
            " running sessions go on in a new file, with their totals but without those rows",
            self.path,
        )
        with self._reading:
            if self._reader is not None:
                self._reader.close()
            self._reader = None
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._db.close()
        self._db = None
        if _identity(self.path) is None:
            # They are the old file's; a new one must not find them.
            for ending in _BESIDE:
                Path(f"{self.path}{ending}").unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """The file that a path leads to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_overwritten(path: Path) -> bool:
    """Whether a file is no database any more; one that cannot be looked at now is taken for one.

    SQLite looks, past its log: whoever opened and closed the file besides would drop the locks that
    this process holds on it.
    """
    try:
        with closing(connect(f"file:{quote(str(path))}?mode=ro&immutable=1")) as db:
            version_of(db)
    except sqlite3.DatabaseError as error:
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB
    return False
