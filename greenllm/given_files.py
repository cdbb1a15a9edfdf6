"""Files that others have written, read so that none can hold a thread for ever or fill the memory.

Contract: only a regular file is opened, or a link to one: a pipe would wait for somebody to write,
a device might never end. No more than a bound is read. Every failure is an `OSError` that says why.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# The largest in use, tokenizers of many languages, have a third of it.
MOST_JSON_BYTES = 128 * 2**20
MOST_SETTINGS_BYTES = 4 * 2**20

_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_start(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file, or all of a shorter one.

    Raises:
        OSError: it is not there, or no regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _WITHOUT_WAITING), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(num_bytes)


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """All of a file.

    Raises:
        OSError: it is not there, no regular file, or larger than `most_bytes`.
    """
    data = read_start(path, most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
    return data


def read_text(path: Path, most_bytes: int) -> str:
    """The same of text in UTF-8; its lines end as Python's do, whatever wrote them.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no such text.
    """
    text = read_bytes(path, most_bytes).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
