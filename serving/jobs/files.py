"""Uploaded files in the data folder.

Contract: a file is there whole or not at all, survives restarts, has an owner, and cannot be named
so that it leaves its folder. Each owner's files keep to a quota, also when they come at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from serving.jobs.quota import UNLIMITED, Quota, QuotaError

PURPOSE = "fine-tune"
_ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file; files from before there were owners have none."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    owner: str | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {"object": "file", **asdict(self), "status": "processed"}


class FileStore:
    """Files in a folder: the content, and beside it what is known of it."""

    def __init__(
        self,
        folder: Path,
        quota: Quota = UNLIMITED,
        bytes_elsewhere: Callable[[str | None], int] = lambda owner: 0,
    ) -> None:
        """`bytes_elsewhere` says what else counts as an owner's."""
        self._folder = folder
        self._quota = quota
        self._bytes_elsewhere = bytes_elsewhere
        self._adding = threading.Lock()

    def check(self, owner: str | None, num_bytes: int) -> None:
        """Refuse a file that its owner has no room for.

        Raises:
            QuotaError: with what to do.
        """
        own = [file for file in self.all() if file.owner == owner]
        if len(own) >= self._quota.num_files:
            raise QuotaError(f"{len(own)} files are kept, which is the most; delete some")
        stored = sum(file.bytes for file in own) + self._bytes_elsewhere(owner)
        if stored + num_bytes > self._quota.num_bytes:
            raise QuotaError(
                f"files and the data of open jobs may have {self._quota.num_bytes / 1e6:g} MB;"
                f" {stored / 1e6:.1f} MB are there: delete files, or cancel jobs"
            )

    def add(self, content: IO[bytes], filename: str, owner: str | None = None) -> StoredFile:
        """Keep a file.

        Raises:
            OSError: it cannot be written; nothing of it stays.
            QuotaError: its owner has no room for it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        file_id = f"file-{time_ordered_id()}"
        path = self._folder / file_id
        draft, about = path.with_suffix(".part"), path.with_suffix(".json")
        try:
            with draft.open("wb") as target:
                shutil.copyfileobj(content, target)
            size, now_s = draft.stat().st_size, int(time.time())
            found = StoredFile(file_id, size, now_s, filename, PURPOSE, owner)
            with self._adding:
                self.check(owner, size)
                about.write_text(json.dumps(asdict(found)), encoding="utf-8")
                draft.replace(path)
        except (OSError, QuotaError):
            for part in (draft, about):
                part.unlink(missing_ok=True)
            raise
        return found

    def find(self, file_id: str) -> StoredFile | None:
        """A file by its id."""
        if not _ID.fullmatch(file_id) or not self.path(file_id).is_file():
            return None
        try:
            return StoredFile(**json.loads(self.path(file_id).with_suffix(".json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> list[StoredFile]:
        """All files, newest first."""
        found = [self.find(path.stem) for path in self._folder.glob("file-*.json")]
        return sorted((f for f in found if f), key=lambda f: (f.created_at, f.id), reverse=True)

    def path(self, file_id: str) -> Path:
        """Where its content is."""
        return self._folder / file_id

    def remove(self, file_id: str) -> None:
        """Delete it."""
        self.path(file_id).with_suffix(".json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)


def time_ordered_id() -> str:
    """24 hexadecimal digits: the time in nanoseconds, then chance."""
    return f"{time.time_ns():016x}{os.urandom(4).hex()}"
