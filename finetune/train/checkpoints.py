"""Checkpoints that are whole or not there.

Contract: a checkpoint counts once its marker is written, which comes last; what a crash or a full
disk left half-written is never resumed from, and is removed when it is noticed. The marker holds
the joules up to that moment, so that a resumed run knows its whole bill.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from finetune.files import MARKER

_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder, by its name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were finished, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / MARKER).is_file()]
    return sorted((path for path in found if step_of(path) is not None), key=_step)


def _step(folder: Path) -> int:
    return step_of(folder) or 0


def remove_incomplete(folder: Path) -> list[str]:
    """Delete what was half-written; returns the names."""
    whole = set(complete(folder))
    broken = [path for path in folder.glob("checkpoint-*") if path not in whole]
    for path in broken:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in broken]
