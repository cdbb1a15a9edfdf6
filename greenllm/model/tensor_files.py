"""The beginning of a safetensors file, looked at before the file is opened by its library.

Contract: a file that passes is a regular one, and its header, which is JSON and read with the
interpreter's lock held, is not larger than that of a checkpoint of a hundred thousand tensors.
"""

from __future__ import annotations

import errno
from pathlib import Path

from greenllm.given_files import read_start

MOST_HEADER_BYTES = 16 * 2**20
_LENGTH_BYTES = 8


def check_header(path: Path) -> None:
    """Refuse a file that should not be opened.

    Raises:
        OSError: it is not there, no regular file, or its header is too large.
    """
    size = int.from_bytes(read_start(path, _LENGTH_BYTES), "little")
    if size > MOST_HEADER_BYTES:
        reason = f"its header has {size} bytes, at most {MOST_HEADER_BYTES}"
        raise OSError(errno.EFBIG, reason, str(path))
