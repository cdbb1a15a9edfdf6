"""The files of a run's folder: their names, JSON and checkpoints that are whole or not there.

Contract: a checkpoint counts once its marker is written, which comes last; what a crash or a full
disk left half-written is never resumed from, and is removed when it is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenllm.core import GreenllmError
from greenllm.given_files import MOST_JSON_BYTES, read_text

REPORT, PAGE, PLOT = "green_report.json", "green_report.md", "green_report.svg"
JOURNAL, OUTCOME, SWEEP, WAIT = "journal.json", "outcome.json", "sweep.json", "wait.json"
CHECKPOINTS, MARKER = "checkpoints", "greenllm.json"
PART = ".part"  # of a file that is being written


class SavingError(GreenllmError):
    """Something could not be written; earlier checkpoints are intact."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file as a whole: readers see the old one or the new one.

    Raises:
        SavingError: it cannot be written.
    """
    draft = path.with_name(path.name + PART)
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
        found = json.loads(read_text(path, MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were finished, oldest first."""
    found = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    steps = {path: int(step) for path, step in found.items() if step.isdecimal()}
    return sorted((path for path in steps if (path / MARKER).is_file()), key=steps.__getitem__)


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that are half-written."""
    for path in set(folder.glob("checkpoint-*")) - set(complete(folder)):
        shutil.rmtree(path, ignore_errors=True)
