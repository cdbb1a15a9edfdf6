"""`/v1/fine_tuning/jobs` as OpenAI has it, with an `energy` object on every job.

Contract: a job trains a LoRA adapter on the served model and is loaded when it is done, under
`ft:BASE:SUFFIX:ID`. It belongs to the key that created it, and so does the model; for others
neither is there. What cannot be trained on is told by the job's `error`, with the line.

Not covered: distillation, checkpoints as models.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finetune.bill.journal import RunJournal
from finetune.files import CHECKPOINTS, MARKER, complete
from serving.auth import Asking, audit, caller_of
from serving.errors import ApiError
from serving.http import Server, body_schema, parsed_body
from serving.jobs.quota import QuotaError
from serving.jobs.store import Job, JobStatus, new_job_id, toml_of
from serving.keys.caller import Caller
from serving.openai.files import find_file, over_quota
from serving.openai.job_schemas import JobBody
from serving.openai.recipes import check_options, check_recipe, hyperparameters_of, recipe_of
from serving.state import ServerState

router = APIRouter()
_PATH = "/v1/fine_tuning/jobs"


@router.post(_PATH, openapi_extra=body_schema(JobBody))
async def create(state: Server, caller: Asking, http: HttpRequest) -> dict[str, Any]:
    """Queue a job."""
    body = await parsed_body(http, state, JobBody)
    if body.model not in state.models.default.names:
        raise ApiError(
            404,
            f"{body.model!r} cannot be fine-tuned here, only {state.models.default.name!r}",
            param="model",
            code="model_not_found",
        )
    check_recipe(body)
    for name in ("training_file", "validation_file"):
        if (file_id := getattr(body, name)) is not None:
            find_file(state, caller, file_id, name)
    job = _new_job(state, caller, body)
    check_options(state, job)
    try:
        await asyncio.to_thread(_keep, state, job)
    except QuotaError as error:
        raise over_quota(error) from error
    audit(http, "job.create", job.id)
    return job_body(state, job)


def _new_job(state: ServerState, caller: Caller, body: JobBody) -> Job:
    return Job(
        id=new_job_id(),
        model=state.models.default.name,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=7 if body.seed is None else body.seed,
        method="supervised" if body.method is None else body.method.type,
        hyperparameters=hyperparameters_of(body).model_dump(),
        recipe=dict(body.recipe or {}),
        metadata=body.metadata,
        created_at=int(time.time()),
        owner=caller.owner,
    )


def _keep(state: ServerState, job: Job) -> None:
    """Write the job with its own copy of the data, so that deleting files does it no harm."""

    def fill(folder: Path) -> None:
        shutil.copy(state.files.path(job.training_file), folder / "training.jsonl")
        if job.validation_file is not None:
            shutil.copy(state.files.path(job.validation_file), folder / "validation.jsonl")
        state.jobs.store.recipe(job.id).write_text(toml_of(recipe_of(state, job)), encoding="utf-8")

    state.jobs.store.add(job, fill)


@router.get(_PATH)
async def jobs(
    state: Server, caller: Asking, after: str | None = None, limit: int = 20
) -> dict[str, Any]:
    """List jobs, newest first."""
    every = await asyncio.to_thread(state.jobs.store.all)
    found = [job for job in every if caller.may_see(job.owner)]
    page, has_more = _page([job_body(state, job) for job in found], after, limit)
    return {"object": "list", "data": page, "has_more": has_more}


@router.get(_PATH + "/{job_id}")
async def job(state: Server, caller: Asking, job_id: str) -> dict[str, Any]:
    """How a job stands."""
    return job_body(state, _find(state, caller, job_id))


@router.post(_PATH + "/{job_id}/cancel")
async def cancel(state: Server, http: HttpRequest, job_id: str) -> dict[str, Any]:
    """End a job; what it has trained is kept in its folder."""
    return _ask(state, http, job_id, "cancel")


@router.post(_PATH + "/{job_id}/pause")
async def pause(state: Server, http: HttpRequest, job_id: str) -> dict[str, Any]:
    """Let a job save a checkpoint and wait."""
    return _ask(state, http, job_id, "pause")


@router.post(_PATH + "/{job_id}/resume")
async def resume(state: Server, http: HttpRequest, job_id: str) -> dict[str, Any]:
    """Queue a paused job again."""
    found = _find(state, caller_of(http), job_id)
    if found.status != "paused":
        raise ApiError(400, f"job {job_id} is {found.status}, not paused", code="invalid_status")
    audit(http, "job.resume", job_id)
    state.jobs.store.note(job_id, "resumed")
    return job_body(state, state.jobs.store.change(job_id, status="queued", wanted=None))


# Which jobs change at once, and to what.
_WISHES: Mapping[str, tuple[tuple[JobStatus, ...], JobStatus]] = {
    "cancel": (("queued", "paused"), "cancelled"),
    "pause": (("queued",), "paused"),
}


def _ask(state: ServerState, http: HttpRequest, job_id: str, wish: str) -> dict[str, Any]:
    """What waits changes at once; what runs is told, and changes when its process has ended."""
    found = _find(state, caller_of(http), job_id)
    store, (waiting, then) = state.jobs.store, _WISHES[wish]
    if found.status not in (*waiting, "running"):
        raise ApiError(400, f"job {job_id} is {found.status}", code="invalid_status")
    audit(http, f"job.{wish}", job_id)
    if found.status == "running":
        return job_body(state, store.change(job_id, wanted=wish))
    ended = {"finished_at": int(time.time())} if then == "cancelled" else {}
    store.note(job_id, then)
    changed = store.change(job_id, status=then, **ended)
    if not changed.is_open:
        store.drop_data(job_id)
    return job_body(state, changed)


@router.get(_PATH + "/{job_id}/events")
async def events(
    state: Server, caller: Asking, job_id: str, after: str | None = None, limit: int = 20
) -> dict[str, Any]:
    """What happened, newest first."""
    _find(state, caller, job_id)
    found = await asyncio.to_thread(state.jobs.store.events, job_id)
    page, has_more = _page(found, after, limit)
    return {"object": "list", "data": page, "has_more": has_more}


@router.get(_PATH + "/{job_id}/checkpoints")
async def checkpoints(
    state: Server, caller: Asking, job_id: str, after: str | None = None, limit: int = 10
) -> dict[str, Any]:
    """Checkpoints that are kept, newest first; they are no models of their own."""
    _find(state, caller, job_id)
    markers = [path / MARKER for path in complete(state.jobs.store.output(job_id) / CHECKPOINTS)]
    found = [_checkpoint(job_id, marker) for marker in reversed(markers)]
    page, has_more = _page(found, after, limit)
    return {"object": "list", "data": page, "has_more": has_more,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None}  # fmt: skip


def _checkpoint(job_id: str, marker: Path) -> dict[str, Any]:
    journal = RunJournal.read(marker) or RunJournal()
    step = journal.seen.steps
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt-{job_id.removeprefix('ftjob-')}-{step}",
        "created_at": int(marker.stat().st_mtime),
        "fine_tuned_model_checkpoint": None,
        "fine_tuning_job_id": job_id,
        "step_number": step,
        "metrics": {
            "step": step,
            "train_loss": dict(journal.losses).get(step),
            "full_valid_loss": dict(journal.scores).get(step),
        },
    }


def _page(found: list[dict[str, Any]], after: str | None, limit: int) -> tuple[list[Any], bool]:
    if not 1 <= limit <= 1000:
        raise ApiError(400, "limit must be in [1, 1000]", param="limit")
    start = 0
    if after is not None:
        places = [i for i, item in enumerate(found) if item["id"] == after]
        if not places:
            raise ApiError(400, f"after: there is no {after!r} in this list", param="after")
        start = places[0] + 1
    return found[start : start + limit], len(found) > start + limit


def _find(state: ServerState, caller: Caller, job_id: str) -> Job:
    found = state.jobs.store.find(job_id)
    if found is None or not caller.may_see(found.owner):
        raise ApiError(404, f"there is no job {job_id!r}", param="job_id", code="job_not_found")
    return found


def job_body(state: ServerState, job: Job) -> dict[str, Any]:
    """OpenAI's job object, and its joules."""
    error = None
    if job.error is not None:
        error = {"code": "training_failed", "message": job.error, "param": _blamed(job)}
    settings = {"hyperparameters": dict(job.hyperparameters)}
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.model,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": "greenllm",
        "result_files": [],
        "status": job.status,
        "validation_file": job.validation_file,
        "training_file": job.training_file,
        **settings,
        "trained_tokens": job.trained_tokens,
        "error": error,
        "user_provided_suffix": job.suffix,
        "seed": job.seed,
        "estimated_finish": None,
        "owner": job.owner,
        "integrations": [],
        "metadata": None if job.metadata is None else dict(job.metadata),
        "method": {"type": job.method, job.method: settings},
        "recipe": dict(job.recipe),
        "energy": None if job.energy is None else dict(job.energy),
    }


def _blamed(job: Job) -> str | None:
    """The parameter of a job that its error is about."""
    files = {"data": "training_file", "validation": "validation_file"}
    asked = f"recipe.{job.blamed}" if job.blamed in job.recipe else None
    return files.get(job.blamed or "", asked)
