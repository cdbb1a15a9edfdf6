"""The audit log: who changed what as an administrator, and when; one JSON object per line.

Contract: a line is written with one call, so that lines of several processes do not mix, to a file
that only its owner reads. What cannot be written is logged and hinders nobody.

Not covered: rotation; what administrators read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)
FILE_NAME = "audit.jsonl"


class AuditLog:
    """Appends to a file in the data folder."""

    def __init__(self, path: Path, wall_clock: Callable[[], float]) -> None:
        self._path = path
        self._wall_clock = wall_clock

    def note(self, who: str, did: str, what: str, *, address: str | None = None) -> None:
        """Add a line: `who` is a key or a user of the machine, `did` a word like `file.delete`."""
        moment = datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="seconds")
        line = {"time": moment, "who": who, "did": did, "what": what, "from": address}
        try:
            self._append(json.dumps(line) + "\n")
        except OSError as error:
            log.error("audit log %s: %s; %s", self._path, error, line)

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(number, "wb", buffering=0) as file:
            file.write(line.encode())
