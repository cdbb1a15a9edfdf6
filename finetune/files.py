"""The files of a run's folder: their names, and JSON that is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenllm.core import GreenllmError

REPORT, PAGE, PLOT = "green_report.json", "green_report.md", "green_report.svg"
JOURNAL = "journal.json"
CHECKPOINTS, MARKER = "checkpoints", "greenllm.json"
SWEEP = "sweep.json"
WAIT = "wait.json"


class SavingError(GreenllmError):
    """Something could not be written; earlier checkpoints are intact."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file as a whole: readers see the old one or the new one.

    Raises:
        SavingError: it cannot be written.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise SavingError(f"cannot write {path}: {error}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's object; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
