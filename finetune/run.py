"""One fine-tune from recipe to report.

    data -> model -> evaluate -> train -> evaluate -> save -> compare -> report

Contract: every joule from the first line on is booked to a phase. A run that cannot go on leaves
its last good weights and a report that says why. Not covered: several runs in one process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune import files
from finetune.bill.journal import RunJournal, take_over, update
from finetune.bill.outcome import RunError, RunOutcome, TrainingBill
from finetune.bill.pages import card, markdown
from finetune.bill.phases import PhaseAccount
from finetune.bill.plot import draw
from finetune.bill.quality import ModelQuality
from finetune.bill.report import Grams, ModelSizes, RunResult, build, identity_of
from finetune.plan.forecast import Forecast, forecast
from finetune.plan.sweep import SweepTrial, with_settings
from finetune.plan.trials import sweep
from finetune.plan.waiting import Wait, wait_for_green, waited
from finetune.recipe import Recipe
from finetune.train import compare
from finetune.train.evaluation import evaluate
from finetune.train.model import device_of, load_base, num_parameters, num_trained, trainable
from finetune.train.output import opened_folder, save_weights
from finetune.train.processes import Processes, join, launched
from finetune.train.setup import RunSetup, load_setup
from finetune.train.training import load_last, make_trainer
from finetune.train.watch import Progress, RunWatch, TrainingError
from greenllm.config import ConfigError, flag
from greenllm.model.files import Weights, local_folder
from greenllm.model.options import resolve

Show = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Where a run goes on."""

    folder: Path
    journal: RunJournal


@dataclass(slots=True)
class _Run:
    """What a run has so far, for its report."""

    setup: RunSetup
    account: PhaseAccount
    grams: Grams
    began: str
    sizes: ModelSizes
    trials: list[SweepTrial]
    wait: Wait | None = None


def run(
    recipe: Recipe, account: PhaseAccount, grams: Grams, show: Show, say: Say
) -> dict[str, Any] | None:
    """Train, and return the report that was written; None in all processes but the main one.

    Raises:
        GreenllmError: before anything was trained, with the option or line to blame; or something
            could not be written.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    processes = _begin(recipe)
    _require_meter(recipe, account, processes)
    # The main process makes the folder, and all of them find the same checkpoint in it.
    with opened_folder(recipe) if processes.is_main else nullcontext():
        processes.wait()
        return _run(recipe, processes, account, grams, began, show, say)


def _run(
    recipe: Recipe,
    processes: Processes,
    account: PhaseAccount,
    grams: Grams,
    began: str,
    show: Show,
    say: Say,
) -> dict[str, Any] | None:
    checkpoint = _last_checkpoint(recipe, say)
    if recipe.resume and processes.is_main:
        reached = None if checkpoint is None else checkpoint.journal
        take_over(account, reached, RunJournal.read(recipe.folder / files.JOURNAL))
    keep = partial(update, recipe.folder / files.JOURNAL, account)
    setup = load_setup(recipe, account, processes)
    say(setup.data.counts.line())
    setup, trials = _swept(setup, account, say, keep)
    model, sizes = _model(setup)
    now = _Run(setup, account, grams, began, sizes, trials)
    if recipe.start == "greenest":
        now.wait = waited(recipe) or _waited(setup, account, model, say)
        keep()
    with account.during("evaluation"):
        before = evaluate(setup, model, account)
    watch = _watch(setup, account, before, show)
    outcome = _train(setup, model, watch, checkpoint)
    with account.during("evaluation"):
        after = evaluate(setup, model, account)
    if before is None or after is None:
        return None
    keep()
    with account.during("saving"):
        size = save_weights(setup.recipe, model, setup.tokenizer)
        now.sizes = replace(sizes, output_bytes=size)
    keep()
    if now.wait is not None:
        now.grams = now.wait.grams(grams, time.time(), account.spent().total_j)
    return _reported(now, watch, RunResult(outcome, before, after))


def _reported(now: _Run, watch: RunWatch, result: RunResult) -> dict[str, Any]:
    """The report, written before anything is compared: what is trained has its bill by then."""
    if now.setup.recipe.compare == "none":
        return _report(now, watch, result)
    unfinished: dict[str, Any] = {"kind": "failed", "reason": "the run ended while it compared"}
    _report(now, watch, replace(result, comparator=unfinished))
    found: dict[str, Any] | None
    try:
        with now.account.during("compare"):
            found = compare.measure(now.setup, now.account.meter, watch.seen)
    except KeyboardInterrupt:
        found = {**unfinished, "reason": "interrupted"}
    except Exception as error:  # out of memory, say: what was trained is whole all the same
        found = {**unfinished, "reason": str(error) or type(error).__name__}
    return _report(now, watch, replace(result, comparator=found))


def _report(now: _Run, watch: RunWatch, result: RunResult) -> dict[str, Any]:
    """Write the report, and then the outcome: who finds that finds the report too."""
    recipe, account, journal = now.setup.recipe, now.account, watch.journal()
    digest = Weights(local_folder(resolve(recipe.model))).digest()
    identity = identity_of(recipe, digest, now.began)
    found = build(recipe, identity, now.setup.data, now.sizes, journal, account, result, now.grams)
    found["trials"] = [asdict(trial) for trial in now.trials]
    found["start"] = None if now.wait is None else now.wait.as_dict()
    files.write_json(recipe.folder / files.REPORT, found)
    grams = found["measures"]["carbon"]["operational_g"]
    bill = TrainingBill.of(journal, account.meter, grams)
    outcome = replace(result.outcome, tokens=journal.seen.tokens, bill=bill)
    outcome.write(recipe.folder / files.OUTCOME)
    return found


def plan(recipe: Recipe, account: PhaseAccount, say: Say) -> Forecast:
    """What the run would cost; nothing is written.

    Raises:
        GreenllmError: what the run itself would refuse.
    """
    setup = load_setup(recipe, account, _begin(recipe))
    say(setup.data.counts.line())
    model, _ = _model(setup)
    return forecast(setup, account, model)


def write_pages(folder: Path, found: dict[str, Any]) -> None:
    """The report as Markdown, its plot, and the card."""
    draw(found, folder / files.PLOT)
    (folder / files.PAGE).write_text(markdown(found, files.PLOT), encoding="utf-8")
    (folder / "README.md").write_text(card(found), encoding="utf-8")


def _begin(recipe: Recipe) -> Processes:
    warnings.simplefilter("ignore", FutureWarning)
    processes = launched()
    alone = (
        ("sweep", recipe.sweep), ("start", recipe.start == "greenest"), ("plan", recipe.plan),
        ("compare", recipe.compare != "none"),
    )  # fmt: skip
    for name, is_wanted in alone:
        if is_wanted and processes.count > 1:
            raise ConfigError(f"{flag(name)} does not go with several processes", name)
    join(processes, device_of(recipe).name)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return processes


def _require_meter(recipe: Recipe, account: PhaseAccount, processes: Processes) -> None:
    account.read()
    if recipe.budget_wh is not None and processes.is_main and not account.is_known:
        raise ConfigError(
            f"--budget-wh needs a meter, and none works here ({account.error or 'no sensor'});"
            " --meter chooses one",
            "budget_wh",
        )


def _last_checkpoint(recipe: Recipe, say: Say) -> _Checkpoint | None:
    if not recipe.resume:
        return None
    for folder in reversed(files.complete(recipe.folder / files.CHECKPOINTS)):
        if (journal := RunJournal.read(folder / files.MARKER)) is not None:
            say(f"goes on from {folder.name}")
            return _Checkpoint(folder, journal)
    say("no checkpoint yet: begins anew")
    return None


def _swept(
    setup: RunSetup, account: PhaseAccount, say: Say, keep: Callable[[], None]
) -> tuple[RunSetup, list[SweepTrial]]:
    """The run with the best settings; one that goes on has chosen already."""
    recipe, path = setup.recipe, setup.recipe.folder / files.SWEEP
    if recipe.sweep is None:
        return setup, []
    known = files.read_json(path) if recipe.resume else None
    if known is None:
        chosen, trials = sweep(setup, account, say, keep)
        files.write_json(path, {"chosen": chosen, "trials": [asdict(trial) for trial in trials]})
    else:
        chosen, trials = known["chosen"], [SweepTrial(**found) for found in known["trials"]]
    return replace(setup, recipe=with_settings(recipe, chosen)), trials


def _model(setup: RunSetup) -> tuple[Any, ModelSizes]:
    torch.manual_seed(setup.recipe.seed)
    base = load_base(setup.recipe, setup.device)
    parameters = num_parameters(base)
    model = trainable(setup.recipe, base)
    teacher = None if setup.teacher is None else num_parameters(setup.teacher)
    return model, ModelSizes(parameters, num_trained(model), 0, teacher)


def _waited(setup: RunSetup, account: PhaseAccount, model: Any, say: Say) -> Wait:
    expected = forecast(setup, account, model)
    return wait_for_green(setup.recipe, account, expected.duration_s, say)


def _watch(
    setup: RunSetup, account: PhaseAccount, before: ModelQuality | None, show: Show
) -> RunWatch:
    """Its reserve is the last evaluation's cost: as the first's, but for the answers' length."""
    recipe = setup.recipe
    return RunWatch(
        account,
        recipe.folder / files.JOURNAL,
        total_tokens=setup.tokens_of(setup.num_steps),
        budget_j=None if recipe.budget_wh is None else recipe.budget_wh * 3600,
        reserve_j=before.cost.total_j + before.more_answers_j if before else 0.0,
        evaluation_j=(before.losses_j or 0.0) if before else 0.0,
        processes=setup.processes,
        show=show,
    )


def _train(
    setup: RunSetup, model: Any, watch: RunWatch, checkpoint: _Checkpoint | None
) -> RunOutcome:
    """Train from the beginning, or from a checkpoint."""
    trainer = make_trainer(setup, model, watch, setup.num_steps)
    if checkpoint is not None:
        watch.restore(checkpoint.journal)
    try:
        with watch.interruptible():
            if checkpoint is not None and checkpoint.journal.seen.steps >= setup.num_steps:
                load_last(trainer, checkpoint.folder)
            else:
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint.folder))
    except TrainingError as error:
        return RunOutcome("failed", error=RunError.of(error))
    finally:
        watch.account.begin("evaluation")
        if setup.processes.is_main:
            watch.write_journal()
    if watch.stopped_by is None:
        return RunOutcome("completed")
    return RunOutcome("stopped", watch.stopped_by)
