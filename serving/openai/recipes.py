"""From the body of a job to the options of its run, within bounds.

Contract: a recipe holds options of `greenllm finetune` by their names. What belongs to the server
is refused by name: where things are, what computes, and the bill, which nobody sets for himself.
Every number has a bound here, so that a job ends and leaves the server its machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from finetune.options import BillOptions
from finetune.plan.sweep import settings_of
from finetune.recipe import Recipe
from greenllm.config import ConfigError, load
from greenllm.options import CarbonOptions
from serving.errors import ApiError
from serving.jobs.store import Job
from serving.openai.job_schemas import Hyperparameters, JobBody, Method
from serving.state import ServerState

_BILL = frozenset(field.name for kind in (BillOptions, CarbonOptions) for field in fields(kind))
OURS = _BILL | {
    "model", "data", "validation", "output", "name", "data_dir", "resume", "device", "plan",
    "start", "deadline", "intensity_series", "probe", "teacher", "seed",
}  # fmt: skip
_NAMED = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate_multiplier": "rate_multiplier",
    "beta": "beta",
}
_OPTIONS = frozenset(field.name for field in fields(Recipe))
_METHODS = ("lora", "qlora", "rslora")
_LONGEST_TEXT, _MOST_NAMES = 1000, 64
# What an option may be at most; what it must be at least, the recipe knows itself.
MOST: Mapping[str, float] = {
    "validation_share": 1,
    "max_length": 2**20,
    "rank": 256,
    "alpha": 10_000,
    "dropout": 1,
    "exit_weight": 100,
    "beta": 2,
    "teacher_weight": 1,
    "teacher_temperature": 100,
    "epochs": 50,
    "steps": 10**5,
    "tokens": 10**9,
    "batch_size": 256,
    "accumulation": 1024,
    "learning_rate": 1,
    "rate_multiplier": 1000,
    "warmup_share": 1,
    "weight_decay": 10,
    "max_grad_norm": 10**6,
    "eval_every": 10**5,
    "patience": 10**5,
    "save_every": 10**5,
    "answers": 10_000,
    "budget_wh": 10**6,
    "threads": os.cpu_count() or 1,
}


def check_recipe(body: JobBody) -> None:
    """Refuse options that are none, that are the server's, or that are given twice.

    Raises:
        ApiError: it names the option.
    """
    recipe = body.recipe or {}
    if odd := [name for name in recipe if name not in _OPTIONS]:
        name = f"recipe.{odd[0]}"
        raise ApiError(400, f"greenllm finetune has no option {odd[0]!r}", param=name)
    if taken := OURS & recipe.keys():
        name = f"recipe.{sorted(taken)[0]}"
        raise ApiError(400, f"{name} is not for a recipe: the server sets it", param=name)
    for name, value in recipe.items():
        _require_short(name, value)
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
    for name in _chosen(hyperparameters_of(body).model_dump()):
        if name in recipe:
            raise ApiError(
                400, f"recipe.{name} is given in hyperparameters too", param=f"recipe.{name}"
            )


def _require_short(name: str, value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    is_long = any(isinstance(text, str) and len(text) > _LONGEST_TEXT for text in texts)
    if is_long or len(texts) > _MOST_NAMES:
        raise ApiError(
            400,
            f"recipe.{name} is too long: {_MOST_NAMES} texts of {_LONGEST_TEXT} characters at most",
            param=f"recipe.{name}",
        )


def hyperparameters_of(body: JobBody) -> Hyperparameters:
    """OpenAI's hyperparameters, wherever they are given.

    Raises:
        ApiError: they are given twice, or for another method.
    """
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


def check_options(state: ServerState, job: Job) -> None:
    """What no run would take, or should not, is no job.

    Raises:
        ApiError: it names the option, where it is one of the recipe's.
    """
    try:
        recipe = load(Recipe, flags=recipe_of(state, job))
        trials = [] if recipe.sweep is None else settings_of(recipe.sweep)
        for settings in (vars(recipe), *trials):
            _require_bounds(settings)
    except ConfigError as error:
        param = f"recipe.{error.option}" if error.option in job.recipe else "recipe"
        raise ApiError(400, f"the recipe cannot be run: {error}", param=param) from error


def _require_bounds(settings: Mapping[str, Any]) -> None:
    for name, most in MOST.items():
        value = settings.get(name)
        if value is not None and value > most:
            raise ConfigError(f"{name} may be {most:g} at most here, not {value:g}", name)


def _chosen(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's hyperparameters that were given, in the recipe's words."""
    return {_NAMED[name]: value for name, value in hyperparameters.items() if value != "auto"}


def recipe_of(state: ServerState, job: Job) -> dict[str, Any]:
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
