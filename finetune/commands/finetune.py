"""`greenllm finetune`: check, train with a progress bar, write the report and say where."""

from __future__ import annotations

import importlib
import logging
import os
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from evals.pages import joules
from finetune.bill.phases import PhaseAccount
from finetune.contention import bound_spinning, warn_of_others
from finetune.recipe import Recipe
from greenllm.core import GreenllmError
from greenllm.energy.carbon.policy import embodied_of, intensity_source
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Meter, NullMeter
from greenllm.energy.meters.scope import Scope

console = Console(stderr=True, highlight=False, emoji=False)


def finetune(recipe: Recipe) -> None:
    """Train and report.

    Raises:
        GreenllmError: the run could not start, or could not go on.
    """
    folder = recipe.folder
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.basicConfig(level="WARNING", format="%(message)s")
    bound_spinning()
    logging.getLogger("bitsandbytes").setLevel("ERROR")  # it misses a kernel nobody asked for
    processes = importlib.import_module("finetune.train.processes").launched()
    console.quiet = not processes.is_main
    others, looked_s = CpuClock(), time.monotonic()
    meter = _meter(recipe, processes.count) if processes.is_main else unmetered()
    account = PhaseAccount(meter, bills_idle=recipe.bill_idle)
    intensity = intensity_source(recipe).intensity(time.time())
    with console.status("importing torch and TRL"):
        torch = importlib.import_module("torch")
        run_module = importlib.import_module("finetune.run")
        report = importlib.import_module("finetune.bill.report")
    cpus = os.cpu_count() or 1
    duration_s = time.monotonic() - looked_s
    warn_of_others(others.read(), duration_s, recipe.threads or cpus, cpus, _say)
    embodied = embodied_of(recipe.device, has_cuda=torch.cuda.is_available())
    grams = report.Grams(intensity, recipe.pue, embodied)
    if recipe.plan:
        _say_plan(run_module.plan(recipe, account, _say), grams)
        return
    with progress_bar() as bar:
        found = run_module.run(recipe, account, grams, shown_on(bar), _say)
    if found is None:
        return
    run_module.write_pages(folder, found)
    _sum_up(recipe, found)
    if found["status"] == "failed":
        raise GreenllmError(found["reason"])


def unmetered() -> Meter:
    """For processes that leave metering to the main one."""
    return NullMeter(time.monotonic)


def _meter(recipe: Recipe, num_processes: int) -> Meter:
    # Siblings are below the launcher: their CPU time is the run's too.
    clock = CpuClock(tree_of=os.getppid() if num_processes > 1 else None)
    several = tuple(f"cuda:{i}" for i in range(num_processes))
    gpus = several if num_processes > 1 and recipe.gpus else recipe.gpus
    meter, _ = open_meter(recipe, Scope(clock, devices=gpus))
    return meter


def progress_bar() -> Progress:
    """For a run's steps."""
    return Progress(
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def shown_on(bar: Progress) -> Any:
    """Shows each look on the bar; without a terminal one line for every tenth."""
    task = bar.add_task("training", total=None, figures="")
    said = -1

    def show(now: Any) -> None:
        nonlocal said
        figures = _figures(now)
        bar.update(task, total=now.num_steps, completed=now.seen.steps, figures=figures)
        tenth = 10 * now.seen.steps // max(1, now.num_steps)
        if not console.is_terminal and tenth != said:
            said = tenth
            _say(f"step {now.seen.steps}/{now.num_steps}: {figures}")

    return show


def _figures(now: Any) -> str:
    parts = [
        "" if now.loss is None else f"loss {now.loss:.3f}",
        f"{now.tokens_per_s:,.0f} tok/s",
        f"{now.watts:.1f} W",
        joules(now.spent_j),
        "" if now.predicted_j is None else f"of about {joules(now.predicted_j)}",
    ]
    return " ".join(part for part in parts if part)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def _say_plan(found: Any, grams: Any) -> None:
    """A forecast for people, and what it is worth."""
    if found.joules is None:
        _say("no meter works here, so nothing can be forecast but the time")
    _say(f"{found.steps:,} steps, {found.tokens:,} tokens: about {found.duration_s:.0f} s")
    if found.joules is not None and found.joules_per_token is not None:
        kwh = found.joules / 3.6e6
        grams_ = kwh * grams.pue * grams.intensity.g_per_kwh
        _say(
            f"about {joules(found.joules)}, scoring included ({joules(found.joules_per_token)} per"
            f" token, batches differ by ± {found.spread:.0%}); {grams_:.3g} g CO2e"
        )
        fewest = "cannot be said: the base solves none of the answers, or all"
        if found.break_even is not None:
            fewest = f"after {found.break_even:,} solved requests at best, if all are solved then"
        _say(f"break-even: {fewest}")


def _sum_up(recipe: Recipe, found: dict[str, Any]) -> None:
    energy, quality = found["measures"]["energy"], found["quality"]
    how = "measured" if energy["measured"] else "modelled"
    _say(f"{found['status']}: {joules(energy['total_j'])} ({how})")
    for name, label in (("validation_loss", "validation loss"), ("exact_match", "exact matches")):
        before, after = quality[name]["before"], quality[name]["after"]
        if before and after:
            _say(f"{label}: {before['value']:.3f} before, {after['value']:.3f} after")
    _say(f"report: {recipe.folder / 'green_report.md'}")
    if found["status"] != "failed":
        _say(f"\n{next_step(recipe)}")


def next_step(recipe: Recipe) -> str:
    """How to use what was trained."""
    folder = recipe.folder
    if not recipe.is_adapter:
        return f"Serve it: greenllm serve {folder}"
    if recipe.method == "dora":
        merge = f"greenllm adapters merge {folder} --model {recipe.model} --output FOLDER"
        return f"The server takes DoRA merged into its base: {merge}"
    if recipe.is_in_data_dir:
        return f"Serve it: greenllm serve {recipe.model}, and ask for the model {recipe.name!r}"
    return f"Let servers find it by a name: greenllm adapters add NAME {folder}"
