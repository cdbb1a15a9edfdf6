"""`/v1/fine_tuning/jobs` as OpenAI has it, with an `energy` object on every job.

Contract: a job trains a LoRA adapter on the served model and is loaded when it is done, under
`ft:BASE:SUFFIX:ID`. What cannot be trained on is told by the job's `error`, with the line. Not
covered: distillation, checkpoints as models.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finetune.bill.journal import RunJournal
from finetune.files import CHECKPOINTS, MARKER, complete
from finetune.recipe import Recipe
from greenllm.config import ConfigError, load
from serving.errors import ApiError
from serving.http import Server, body_schema, parsed_body
from serving.jobs.store import Job, JobStatus, new_job_id, toml_of
from serving.openai.files import find_file
from serving.openai.job_schemas import Hyperparameters, JobBody, Method
from serving.state import ServerState, state_of

router = APIRouter()
_PATH = "/v1/fine_tuning/jobs"
_OURS = frozenset(
    {"model", "data", "validation", "output", "name", "data_dir", "resume", "device", "meter",
     "bill_idle", "plan", "start", "deadline", "intensity_series", "probe", "teacher", "seed"}
)  # fmt: skip
_NAMED = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate_multiplier": "rate_multiplier",
    "beta": "beta",
}
_OPTIONS = frozenset(field.name for field in fields(Recipe))
_METHODS = ("lora", "qlora", "rslora")


@router.post(_PATH, openapi_extra=body_schema(JobBody))
async def create(http: HttpRequest) -> dict[str, Any]:
    """Queue a job."""
    state = state_of(http)
    body = await parsed_body(http, state, JobBody)
    if body.model not in state.models.default.names:
        raise ApiError(
            404,
            f"{body.model!r} cannot be fine-tuned here, only {state.models.default.name!r}",
            param="model",
            code="model_not_found",
        )
    _check_recipe(state, body)
    find_file(state, body.training_file, "training_file")
    if body.validation_file is not None:
        find_file(state, body.validation_file, "validation_file")
    job = _new_job(state, body)
    _check_options(state, job)
    await asyncio.to_thread(_keep, state, job)
    return job_body(state, job)


def _check_recipe(state: ServerState, body: JobBody) -> None:
    recipe = body.recipe or {}
    if odd := [name for name in recipe if name not in _OPTIONS]:
        name = f"recipe.{odd[0]}"
        raise ApiError(400, f"greenllm finetune has no option {odd[0]!r}", param=name)
    if taken := _OURS & recipe.keys():
        name = f"recipe.{sorted(taken)[0]}"
        raise ApiError(400, f"{name} is not for a recipe: the server sets it", param=name)
    if (way := recipe.get("method", "lora")) not in _METHODS:
        raise ApiError(
            400,
            f"recipe.method must be one of {', '.join(_METHODS)}, whose adapters the server takes"
            f" beside its model, not {way!r}",
            param="recipe.method",
        )
    if body.method is not None and body.method.type == "dpo" and "objective" in recipe:
        raise ApiError(400, "method dpo is an objective already", param="recipe.objective")
    if recipe.get("objective") == "dpo":
        raise ApiError(400, "give dpo as method.type", param="recipe.objective")
    for name in _chosen(_hyperparameters(body).model_dump()):
        if name in recipe:
            raise ApiError(
                400, f"recipe.{name} is given in hyperparameters too", param=f"recipe.{name}"
            )


def _check_options(state: ServerState, job: Job) -> None:
    """What no run would take is no job.

    Raises:
        ApiError: it names the option, where it is one of the recipe's.
    """
    try:
        load(Recipe, flags=_recipe(state, job))
    except ConfigError as error:
        param = f"recipe.{error.option}" if error.option in job.recipe else "recipe"
        raise ApiError(400, f"the recipe cannot be run: {error}", param=param) from error


def _chosen(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's hyperparameters that were given, in the recipe's words."""
    return {_NAMED[name]: value for name, value in hyperparameters.items() if value != "auto"}


def _new_job(state: ServerState, body: JobBody) -> Job:
    return Job(
        id=new_job_id(),
        model=state.models.default.name,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=7 if body.seed is None else body.seed,
        method="supervised" if body.method is None else body.method.type,
        hyperparameters=_hyperparameters(body).model_dump(),
        recipe=dict(body.recipe or {}),
        metadata=body.metadata,
        created_at=int(time.time()),
    )


def _hyperparameters(body: JobBody) -> Hyperparameters:
    method = body.method or Method()
    is_dpo = method.type == "dpo"
    if (method.supervised if is_dpo else method.dpo) is not None:
        raise ApiError(
            400, f"method.type {method.type} goes with settings of that name", param="method"
        )
    given = method.dpo if is_dpo else method.supervised
    inner = given.hyperparameters if given else None
    if inner is not None and body.hyperparameters is not None:
        raise ApiError(
            400, "give hyperparameters once, in method or beside it", param="hyperparameters"
        )
    return inner or body.hyperparameters or Hyperparameters()


def _keep(state: ServerState, job: Job) -> None:
    """Write the job with its own copy of the data, so that deleting files does it no harm."""

    def fill(folder: Path) -> None:
        shutil.copy(state.files.path(job.training_file), folder / "training.jsonl")
        if job.validation_file is not None:
            shutil.copy(state.files.path(job.validation_file), folder / "validation.jsonl")
        state.jobs.store.recipe(job.id).write_text(toml_of(_recipe(state, job)), encoding="utf-8")

    state.jobs.store.add(job, fill)


def _recipe(state: ServerState, job: Job) -> dict[str, Any]:
    """Options of the run; idle power is on the server's bill already.

    Half of the CPUs: the other half serves, and fewer threads need fewer active joules.
    """
    config, folder = state.config, state.jobs.store.folder(job.id)
    validation = {"validation": str(folder / "validation.jsonl")} if job.validation_file else {}
    objective = {"objective": "dpo"} if job.method == "dpo" else {}
    own = {} if config.intensity_g_per_kwh is None else {
        "intensity_g_per_kwh": config.intensity_g_per_kwh,
        "intensity_source": config.intensity_source,
    }  # fmt: skip
    options = {
        "model": config.model,
        "data": str(folder / "training.jsonl"),
        **validation,
        "output": str(state.jobs.store.output(job.id)),
        "seed": job.seed,
        "bill_idle": False,
        "threads": max(1, (os.cpu_count() or 1) // 2),
        "device": config.device,
        "meter": config.meter,
        "zone": config.zone,
        "pue": config.pue,
        **own,
        **objective,
        **_chosen(job.hyperparameters),
        **job.recipe,
    }
    return {name: value for name, value in options.items() if value is not None}


@router.get(_PATH)
async def jobs(state: Server, after: str | None = None, limit: int = 20) -> dict[str, Any]:
    """List jobs, newest first."""
    found = await asyncio.to_thread(state.jobs.store.all)
    page, has_more = _page([job_body(state, job) for job in found], after, limit)
    return {"object": "list", "data": page, "has_more": has_more}


@router.get(_PATH + "/{job_id}")
async def job(state: Server, job_id: str) -> dict[str, Any]:
    """How a job stands."""
    return job_body(state, _find(state, job_id))


@router.post(_PATH + "/{job_id}/cancel")
async def cancel(state: Server, job_id: str) -> dict[str, Any]:
    """End a job; what it has trained is kept in its folder."""
    return _ask(state, job_id, "cancel", ("queued", "paused"), "cancelled")


@router.post(_PATH + "/{job_id}/pause")
async def pause(state: Server, job_id: str) -> dict[str, Any]:
    """Let a job save a checkpoint and wait."""
    return _ask(state, job_id, "pause", ("queued",), "paused")


@router.post(_PATH + "/{job_id}/resume")
async def resume(state: Server, job_id: str) -> dict[str, Any]:
    """Queue a paused job again."""
    found = _find(state, job_id)
    if found.status != "paused":
        raise ApiError(400, f"job {job_id} is {found.status}, not paused", code="invalid_status")
    state.jobs.store.note(job_id, "resumed")
    return job_body(state, state.jobs.store.change(job_id, status="queued", wanted=None))


def _ask(
    state: ServerState, job_id: str, wish: str, waiting: tuple[JobStatus, ...], then: JobStatus
) -> dict[str, Any]:
    """What waits changes at once; what runs is told, and changes when its process has ended."""
    found = _find(state, job_id)
    store = state.jobs.store
    if found.status in waiting:
        ended = {"finished_at": int(time.time())} if then == "cancelled" else {}
        store.note(job_id, then)
        return job_body(state, store.change(job_id, status=then, **ended))
    if found.status != "running":
        raise ApiError(400, f"job {job_id} is {found.status}", code="invalid_status")
    return job_body(state, store.change(job_id, wanted=wish))


@router.get(_PATH + "/{job_id}/events")
async def events(
    state: Server, job_id: str, after: str | None = None, limit: int = 20
) -> dict[str, Any]:
    """What happened, newest first."""
    _find(state, job_id)
    found = await asyncio.to_thread(state.jobs.store.events, job_id)
    page, has_more = _page(found, after, limit)
    return {"object": "list", "data": page, "has_more": has_more}


@router.get(_PATH + "/{job_id}/checkpoints")
async def checkpoints(
    state: Server, job_id: str, after: str | None = None, limit: int = 10
) -> dict[str, Any]:
    """Checkpoints that are kept, newest first; they are no models of their own."""
    _find(state, job_id)
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


def _find(state: ServerState, job_id: str) -> Job:
    found = state.jobs.store.find(job_id)
    if found is None:
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
