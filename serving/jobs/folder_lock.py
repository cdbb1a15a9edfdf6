"""Which server looks after a folder of jobs: the one that holds its lock.

Contract: the kernel lets go of the lock when its holder ends, however that is. Another server on
the same folder can list its jobs and add some; they are run by whoever holds the lock.

Not covered: file systems without locks, where each server takes itself for the only one.
"""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

_NAME = ".owner"
_HELD = (errno.EAGAIN, errno.EACCES)


class FolderLock:
    """A lock that is held from the first `take` that succeeds until `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream: IO[bytes] | None = None

    def take(self) -> bool:
        """Whether the folder is this process's; takes it if it is nobody's.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._stream is not None:
            return True
        self._folder.mkdir(parents=True, exist_ok=True)
        stream = (self._folder / _NAME).open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                stream.close()
                return False
        self._stream = stream
        return True

    def release(self) -> None:
        """Let another have it."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
