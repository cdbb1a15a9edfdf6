"""Whether the process that wrote a session is still there: a locked file beside the ledger.

Contract: the kernel lets go of a lock when its holder ends, however that is; so it holds across
containers that share a volume, and process ids need not mean anything. Whoever closes a session
removes the file. Where files cannot be locked there is none, and a session without one belongs to
somebody who looks after it himself.

In the file are lines about requests whose clients know their ids before the ledger does: what was
written is there for the next process, however this one ends. It stays short: once it is longer than
`_MOST_BYTES`, the lines of requests that the ledger knows are left out.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

_MOST_BYTES = 1_000_000


class SessionLock:
    """A lock that is held; `release` removes it."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self._path = path
        self._stream = stream
        self._noting = threading.Lock()
        self._open: dict[str, str] = {}
        self._num_bytes = 0

    def note(self, request_id: str, line: str) -> None:
        """Keep a line about a request.

        Raises:
            OSError: it cannot be written.
        """
        with self._noting:
            self._open[request_id] = line
            self._append((line,))

    def forget(self, request_ids: Iterable[str]) -> None:
        """The ledger knows these requests now.

        Raises:
            OSError: the file has become too long, and cannot be shortened.
        """
        with self._noting:
            for request_id in request_ids:
                self._open.pop(request_id, None)
            if self._num_bytes > _MOST_BYTES:
                self._stream.truncate(0)
                self._num_bytes = 0
                self._append(self._open.values())

    def _append(self, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        self._num_bytes += len(text)
        self._stream.write(text)
        self._stream.flush()

    def lines(self) -> list[str]:
        """What the session's process has left; the last may be cut off."""
        return self._path.read_text("ascii", errors="replace").splitlines()

    def release(self) -> None:
        """Let go; the session is closed."""
        self._path.unlink(missing_ok=True)
        self._stream.close()

    def leave(self) -> None:
        """Let go, for somebody else to close the session."""
        self._stream.close()


def hold(ledger: Path, session_id: str) -> SessionLock | None:
    """Lock a new session; None where files cannot be locked."""
    path = _path(ledger, session_id)
    try:
        return _locked(path, path.open("a", encoding="ascii"))
    except OSError:
        with suppress(OSError):
            path.unlink()  # without a lock it would say that the process is gone
        return None


def take_over(ledger: Path, session_id: str) -> SessionLock | None:
    """Lock a session that nobody holds any more; None where somebody does, or where none has."""
    path = _path(ledger, session_id)
    try:
        return _locked(path, path.open("r+", encoding="ascii"))
    except OSError:
        return None


def _locked(path: Path, stream: IO[str]) -> SessionLock:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(stream.fileno()).st_nlink == 0:
            raise FileNotFoundError(path)  # somebody has just closed the session
    except OSError:
        stream.close()
        raise
    return SessionLock(path, stream)


def _path(ledger: Path, session_id: str) -> Path:
    return ledger.with_name(f"{ledger.name}.{session_id}.lock")
