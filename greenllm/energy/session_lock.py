"""Whether the process that wrote a session is still there: a locked file beside the ledger.

Contract: the kernel lets go of a lock when its holder ends, however that is; so it holds across
containers that share a volume, and process ids need not mean anything. Whoever closes a session
removes the file. Where files cannot be locked there is none, and a session without one belongs to
somebody who looks after it himself.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO


class SessionLock:
    """A lock that is held; `release` removes it."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self._path = path
        self._stream = stream

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
