"""What finished jobs become: adapters where the server looks for them, each with its owner."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from greenllm.model.adapter_folders import FILES, OWNER_NAME, keep_owner
from serving.jobs.store import Job, adapter_folder, model_name

log = logging.getLogger(__name__)


def install(job: Job, output: Path, adapters: Path) -> str:
    """Put a job's adapter where the server looks; returns the model's name."""
    name = model_name(job)
    target = adapters / adapter_folder(name)
    draft = adapters / f".{job.id}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for file in FILES:
        shutil.copy(output / file, draft / file)
    keep_owner(draft, job.owner)
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)
    return name


def disown(adapters: Path, names: Iterable[str]) -> None:
    """Adapters of jobs from before there were owners are nobody's; else they were everybody's."""
    for name in names:
        folder = adapters / name
        try:
            if folder.is_dir() and not (folder / OWNER_NAME).exists():
                keep_owner(folder, None)
        except OSError as error:
            log.warning("adapter %s: its owner cannot be noted: %s", name, error)
