"""One fine-tune from recipe to report.

    data -> model -> look -> train -> look -> save -> compare -> report

Contract: every joule from the first line on is booked to a phase. A run that cannot go on leaves
its last good weights and a report that says why. Not covered: several runs in one process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune.bill.card import card
from finetune.bill.journal import RunJournal, take_over, update
from finetune.bill.phases import PhaseAccount
from finetune.bill.plot import draw
from finetune.bill.quality import Quality
from finetune.bill.report import Grams, Outcome, Sizes, build, identity_of
from finetune.bill.text import markdown
from finetune.data.dataset import Data, load_data
from finetune.data.probe import load_probe
from finetune.files import (
    CHECKPOINTS,
    JOURNAL,
    MARKER,
    PAGE,
    PLOT,
    REPORT,
    SWEEP,
    read_json,
    write_json,
)
from finetune.plan.forecast import Forecast, forecast
from finetune.plan.sweep import Trial, with_settings
from finetune.plan.trials import sweep
from finetune.plan.waiting import Wait, wait_for_green, waited
from finetune.recipe import Recipe
from finetune.train import compare
from finetune.train.checkpoints import complete, step_of
from finetune.train.distilling import load_teacher
from finetune.train.model import (
    load_base,
    load_tokenizer,
    num_parameters,
    num_trained,
    place_of,
    trainable,
)
from finetune.train.output import open_folder, save_weights
from finetune.train.processes import Processes, join, launched
from finetune.train.subject import Subject
from finetune.train.training import load_last, make_trainer, num_rows
from finetune.train.watch import Progress, TrainingError, Watch
from greenllm.config import ConfigError, flag
from greenllm.model.files import Weights, local_folder
from greenllm.model.options import resolve

Show = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(slots=True)
class _Run:
    """What a run has so far."""

    subject: Subject
    account: PhaseAccount
    model: Any
    sizes: Sizes
    trials: list[Trial]
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
    checkpoint = _open(recipe, processes, say)
    kept = None if checkpoint is None else RunJournal.read(checkpoint / MARKER)
    if recipe.resume and processes.is_main:
        take_over(account, kept, RunJournal.read(recipe.folder / JOURNAL))
    keep = partial(update, recipe.folder / JOURNAL, account)
    subject = _subject(recipe, account, processes)
    say(_data_line(subject.data))
    subject, trials = _swept(subject, account, say, keep)
    now = _Run(subject, account, *_model(subject), trials)
    if recipe.start == "greenest":
        now.wait = waited(recipe) or _waited(now, say)
        keep()
    with account.during("evaluation"):
        before = subject.look(now.model, account)
    watch = _watch(subject, account, before, show)
    status, reason = _train(subject, now.model, watch, checkpoint, kept)
    with account.during("evaluation"):
        after = subject.look(now.model, account)
    if before is None or after is None:
        return None
    keep()
    with account.during("saving"):
        size = save_weights(subject.recipe, now.model, subject.tokenizer)
        now.sizes = replace(now.sizes, output_bytes=size)
    keep()
    if now.wait is not None:
        grams = now.wait.grams(grams, time.time(), account.spent().total_j)
    outcome = Outcome(status, reason, before, after, None)
    return _reported(now, watch, outcome, grams, began)


def _reported(
    now: _Run, watch: Watch, outcome: Outcome, grams: Grams, began: str
) -> dict[str, Any]:
    """The report, written before anything is compared: what is trained has its bill by then."""
    kind = now.subject.recipe.compare
    if kind == "none":
        return _report(now, watch, outcome, grams, began)
    unfinished: dict[str, Any] = {"kind": "failed", "reason": "the run ended while it compared"}
    _report(now, watch, replace(outcome, comparator=unfinished), grams, began)
    try:
        with now.account.during("compare"):
            found = compare.measure(now.subject, now.account.meter, watch.seen)
    except KeyboardInterrupt:
        found = {**unfinished, "reason": "interrupted"}
    except Exception as error:  # out of memory, say: what was trained is whole all the same
        found = {**unfinished, "reason": str(error) or type(error).__name__}
    return _report(now, watch, replace(outcome, comparator=found), grams, began)


def _waited(now: _Run, say: Say) -> Wait:
    expected = forecast(now.subject, now.account, now.model, now.subject.num_steps())
    return wait_for_green(now.subject.recipe, now.account, expected.duration_s, say)


def _require_meter(recipe: Recipe, account: PhaseAccount, processes: Processes) -> None:
    account.read()
    if recipe.budget_wh is not None and processes.is_main and not account.is_known:
        raise ConfigError(
            f"--budget-wh needs a meter, and none works here ({account.error or 'no sensor'});"
            " --meter chooses one"
        )


def _begin(recipe: Recipe) -> Processes:
    warnings.simplefilter("ignore", FutureWarning)
    processes = launched()
    alone = (
        ("sweep", recipe.sweep), ("start", recipe.start == "greenest"), ("plan", recipe.plan),
        ("compare", recipe.compare != "none"),
    )  # fmt: skip
    for name, is_wanted in alone:
        if is_wanted and processes.count > 1:
            raise ConfigError(f"{flag(name)} does not go with several processes")
    join(processes, place_of(recipe).device)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return processes


def _model(subject: Subject) -> tuple[Any, Sizes]:
    recipe = subject.recipe
    torch.manual_seed(recipe.seed)
    base = load_base(recipe, subject.place)
    parameters = num_parameters(base)
    model = trainable(recipe, base)
    teacher = None if subject.teacher is None else num_parameters(subject.teacher)
    return model, Sizes(parameters, num_trained(model), 0, teacher)


def _report(now: _Run, watch: Watch, outcome: Outcome, grams: Grams, began: str) -> dict[str, Any]:
    recipe = now.subject.recipe
    identity = identity_of(recipe, Weights(local_folder(resolve(recipe.model))).digest(), began)
    found = build(
        recipe, identity, now.subject.data, now.sizes, watch.journal(), now.account, outcome, grams
    )
    found["trials"] = [asdict(trial) for trial in now.trials]
    found["start"] = None if now.wait is None else now.wait.as_dict()
    write_json(recipe.folder / REPORT, found)
    return found


def plan(recipe: Recipe, account: PhaseAccount, say: Say) -> Forecast:
    """What the run would cost; nothing is written.

    Raises:
        GreenllmError: what the run itself would refuse.
    """
    processes = _begin(recipe)
    subject = _subject(recipe, account, processes)
    say(_data_line(subject.data))
    model, _ = _model(subject)
    return forecast(subject, account, model, subject.num_steps())


def _swept(
    subject: Subject, account: PhaseAccount, say: Say, keep: Callable[[], None]
) -> tuple[Subject, list[Trial]]:
    """The subject with the best settings; a run that goes on has chosen already."""
    recipe, path = subject.recipe, subject.recipe.folder / SWEEP
    if recipe.sweep is None:
        return subject, []
    known = read_json(path) if recipe.resume else None
    if known is None:
        chosen, trials = sweep(subject, account, subject.num_steps(), say, keep)
        write_json(path, {"chosen": chosen, "trials": [asdict(trial) for trial in trials]})
    else:
        chosen, trials = known["chosen"], [Trial(**found) for found in known["trials"]]
    return replace(subject, recipe=with_settings(recipe, chosen)), trials


def write_pages(folder: Path, found: dict[str, Any]) -> None:
    """The report as Markdown, its plot, and the card."""
    draw(found, folder / PLOT)
    (folder / PAGE).write_text(markdown(found, PLOT), encoding="utf-8")
    (folder / "README.md").write_text(card(found), encoding="utf-8")


def _open(recipe: Recipe, processes: Processes, say: Say) -> Path | None:
    """The main process makes the folder; all of them find the same checkpoint in it."""
    if processes.is_main:
        open_folder(recipe)
    processes.wait()
    found = complete(recipe.folder / CHECKPOINTS) if recipe.resume else []
    if recipe.resume:
        say(f"goes on from {found[-1].name}" if found else "no checkpoint yet: begins anew")
    return found[-1] if found else None


def _subject(recipe: Recipe, account: PhaseAccount, processes: Processes) -> Subject:
    place, tokenizer = place_of(recipe), load_tokenizer(recipe)
    context = min(tokenizer.model_max_length, _context(recipe))
    with account.during("data"):
        data = load_data(recipe, tokenizer, context)
        probe = load_probe(recipe, tokenizer, context)
    recipe = replace(recipe, max_length=recipe.max_length or context)
    teacher = load_teacher(recipe, place, tokenizer)
    if recipe.eval_every is not None and not data.validation:
        raise ConfigError(
            f"--eval-every {recipe.eval_every}: of {data.counts.train} examples none is held out"
            " to look at; give --validation, or more examples"
        )
    rows = num_rows(recipe, data.train, recipe.max_length or context)
    return Subject(recipe, place, tokenizer, data, probe, processes, rows, teacher)


def _context(recipe: Recipe) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(local_folder(resolve(recipe.model)))
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)


def _watch(subject: Subject, account: PhaseAccount, before: Quality | None, show: Show) -> Watch:
    """Its reserve is what the last look will cost: as the first, but for the answers' length."""
    recipe = subject.recipe
    return Watch(
        account,
        recipe.folder / JOURNAL,
        total_tokens=subject.total_tokens(subject.num_steps()),
        budget_j=None if recipe.budget_wh is None else recipe.budget_wh * 3600,
        reserve_j=before.cost.total_j + before.more_answers_j if before else 0.0,
        look_j=(before.losses_j or 0.0) if before else 0.0,
        processes=subject.processes,
        show=show,
    )


def _train(
    subject: Subject,
    model: Any,
    watch: Watch,
    checkpoint: Path | None,
    kept: RunJournal | None,
) -> tuple[str, str | None]:
    """How training ended, and why it did before its end."""
    steps = subject.num_steps()
    trainer = make_trainer(subject, model, watch, steps)
    if kept is not None:
        watch.restore(kept)
    try:
        with watch.interruptible():
            if checkpoint is not None and (step_of(checkpoint) or 0) >= steps:
                load_last(trainer, checkpoint)
            else:
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except TrainingError as error:
        return "failed", str(error)
    finally:
        watch.account.begin("evaluation")
        if subject.processes.is_main:
            watch.write_journal()
    return ("completed", None) if watch.stopped_by is None else ("stopped", watch.stopped_by)


def _data_line(data: Data) -> str:
    counts = data.counts
    left_out = [
        f"{counts.doubles} doubles ({counts.doubles_tokens:,} tokens)" if counts.doubles else "",
        f"{counts.dropped} too long" if counts.dropped else "",
        f"{counts.truncated} cut" if counts.truncated else "",
    ]
    rest = ", ".join(part for part in left_out if part)
    return (
        f"{counts.train} examples ({counts.train_tokens:,} tokens, {counts.learnt_tokens:,} of them"
        f" learnt), {counts.validation} to score on" + (f"; left out: {rest}" if rest else "")
    )
