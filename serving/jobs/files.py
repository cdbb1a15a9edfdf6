"""Uploaded files in the data folder.

Contract: a file is there whole or not at all, survives restarts, and cannot be named so that it
leaves its folder. Not covered: how much room they take together.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

PURPOSE = "fine-tune"
_ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str

    def body(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {"object": "file", **asdict(self), "status": "processed"}


class FileStore:
    """Files in a folder: the content, and beside it what is known of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, content: IO[bytes], filename: str) -> StoredFile:
        """Keep a file.

        Raises:
            OSError: it cannot be written; nothing of it stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        file_id = f"file-{time_ordered_id()}"
        path = self._folder / file_id
        draft, about = path.with_suffix(".part"), path.with_suffix(".json")
        try:
            with draft.open("wb") as target:
                shutil.copyfileobj(content, target)
            found = StoredFile(file_id, draft.stat().st_size, int(time.time()), filename, PURPOSE)
            about.write_text(json.dumps(asdict(found)), encoding="utf-8")
            draft.replace(path)
        except OSError:
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
