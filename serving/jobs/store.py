"""Fine-tuning jobs as they are kept: one folder each, with everything that belongs to it.

    job.json     what the job is and how it stands        recipe.toml   what is run
    events.jsonl what happened, in order                  log.txt       what the run said
    output/      checkpoints, weights, report

Contract: `job.json` is replaced as a whole; a server that comes back finds every job as it was.
Each job has an owner, who may have a number of open jobs; of those that have ended the newest
`MOST_ENDED` are kept.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from serving.jobs.energy import spent_since
from serving.jobs.files import time_ordered_id
from serving.jobs.quota import UNLIMITED, Quota, QuotaError

log = logging.getLogger(__name__)
JobStatus = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
FINE_TUNED = "ft:"
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
MOST_ENDED = 500
DATA_FILES = ("training.jsonl", "validation.jsonl")
_ID = re.compile(r"ftjob-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class Job:
    """One job; `wanted` is what somebody asked of it while it ran.

    `blamed` is the option of the run that its error is about, or whose file is.
    """

    id: str
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    hyperparameters: Mapping[str, Any]
    recipe: Mapping[str, Any]
    metadata: Mapping[str, str] | None
    created_at: int
    status: JobStatus = "queued"
    started_at: int | None = None
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error: str | None = None
    blamed: str | None = None
    wanted: Literal["pause", "cancel"] | None = None
    pid: int | None = None
    energy: Mapping[str, Any] | None = field(default=None)
    method: Literal["supervised", "dpo"] = "supervised"
    owner: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still train."""
        return self.status not in ENDED


class JobStore:
    """Jobs in a folder."""

    def __init__(self, folder: Path, quota: Quota = UNLIMITED) -> None:
        self._folder = folder
        self._quota = quota
        self._adding = threading.Lock()

    def add(self, job: Job, fill: Callable[[Path], None] = lambda folder: None) -> None:
        """Keep a new job once its folder is filled; nobody sees one that is not.

        Raises:
            QuotaError: its owner has as many open jobs as it may have.
        """
        with self._adding:
            self._make_room(job.owner)
            folder = self.folder(job.id)
            folder.mkdir(parents=True)
            try:
                fill(folder)
                self.note(job.id, "created")
                self.save(job)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _make_room(self, owner: str | None) -> None:
        """Refuse another open job where there are enough, and forget the oldest that have ended."""
        own = [job for job in self.all() if job.owner == owner]
        if sum(job.is_open for job in own) >= self._quota.num_jobs:
            raise QuotaError(
                f"{self._quota.num_jobs} fine-tuning jobs wait, run or are paused, which is the"
                " most; wait for one, or cancel it"
            )
        for job in [job for job in own if not job.is_open][MOST_ENDED - 1 :]:
            shutil.rmtree(self.folder(job.id), ignore_errors=True)

    def data_bytes(self, owner: str | None) -> int:
        """Bytes of the data that an owner's open jobs have copied."""
        own = [job for job in self.all() if job.owner == owner and job.is_open]
        paths = [self.folder(job.id) / name for job in own for name in DATA_FILES]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def spent_since(self, since_s: float) -> dict[str, tuple[float, float]]:
        """Joules and grams by owner of the jobs that are open, or have ended since then."""
        found: dict[str, tuple[float, float]] = {}
        for job in self.all():
            if job.owner is not None and (job.is_open or (job.finished_at or 0) >= since_s):
                joules, grams = spent_since({}, job.energy or {})
                before = found.get(job.owner, (0.0, 0.0))
                found[job.owner] = before[0] + joules, before[1] + grams
        return found

    def drop_data(self, job_id: str) -> None:
        """Delete the data that it has copied: a job that has ended needs none."""
        for name in DATA_FILES:
            with suppress(OSError):
                (self.folder(job_id) / name).unlink()

    def save(self, job: Job) -> None:
        """Replace what is kept of it."""
        path = self.folder(job.id) / "job.json"
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")
        draft.replace(path)

    def change(self, job_id: str, **fields: Any) -> Job:
        """Change some fields of a job."""
        job = self.find(job_id)
        if job is None:
            raise KeyError(job_id)
        changed = replace(job, **fields)
        self.save(changed)
        return changed

    def find(self, job_id: str) -> Job | None:
        """A job by its id."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            return Job(**json.loads((self.folder(job_id) / "job.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> list[Job]:
        """All jobs, newest first."""
        found = [self.find(path.name) for path in self._folder.glob("ftjob-*")]
        return sorted((j for j in found if j), key=lambda j: (j.created_at, j.id), reverse=True)

    def models(self) -> dict[str, str]:
        """Names of the models that jobs ended with, by their adapters' folders."""
        names = [job.fine_tuned_model for job in self.all()]
        return {adapter_folder(name): name for name in names if name is not None}

    def folder(self, job_id: str) -> Path:
        """Where everything of a job is."""
        return self._folder / job_id

    def output(self, job_id: str) -> Path:
        """Where its run writes."""
        return self.folder(job_id) / "output"

    def recipe(self, job_id: str) -> Path:
        """The options of its run."""
        return self.folder(job_id) / "recipe.toml"

    def note(
        self,
        job_id: str,
        message: str,
        data: Mapping[str, Any] | None = None,
        level: Literal["info", "error"] = "info",
    ) -> None:
        """Add an event; with data it is one of metrics. One that cannot be written is logged."""
        event = {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{os.urandom(12).hex()}",
            "created_at": int(time.time()),
            "level": level,
            "message": message,
            "type": "message" if data is None else "metrics",
            "data": data,
        }
        try:
            with (self.folder(job_id) / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            log.error("job %s: %s (its event cannot be written: %s)", job_id, message, error)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Its events, newest first; a line that a full disk cut off is left out."""
        try:
            lines = (self.folder(job_id) / "events.jsonl").read_text("utf-8").splitlines()
        except OSError:
            return []
        found = (_object(line) for line in reversed(lines))
        return [event for event in found if event is not None]

    def last_step(self, job_id: str) -> int:
        """The last step that an event told of; 0 before the first."""
        found = (event["data"] for event in self.events(job_id) if event["data"] is not None)
        return next((int(data["step"]) for data in found), 0)


def next_of(waiting: Sequence[Job], jobs: Sequence[Job]) -> Job:
    """The waiting job whose owner's last one began longest ago; of one owner the oldest."""
    last: dict[str | None, int] = {}
    for job in jobs:
        last[job.owner] = max(last.get(job.owner, 0), job.started_at or 0)
    return min(waiting, key=lambda job: (last[job.owner], job.created_at, job.id))


def new_job_id() -> str:
    """A fresh id. It sorts by time, as those of one second have the same `created_at`."""
    return f"ftjob-{time_ordered_id()}"


def model_name(job: Job) -> str:
    """What the finished adapter is called: `ft:BASE:SUFFIX:ID`."""
    base = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(job.model).name)
    return f"{FINE_TUNED}{base}:{job.suffix or ''}:{job.id[-8:]}"


def adapter_folder(name: str) -> str:
    """The folder of such a name; colons are not for folders."""
    return name.replace("::", ":-:").replace(":", ".")


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def toml_of(values: Mapping[str, Any]) -> str:
    """Flat TOML; strings are written as JSON strings, which TOML reads alike but for surrogates."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
