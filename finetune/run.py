"""One fine-tune from recipe to report.

    data -> model -> look -> train -> look -> save -> compare -> report

Contract: every joule from the first line on is booked to a phase. A run that cannot go on leaves
its last good weights and a report that says why. Not covered: several runs in one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from finetune import compare
from finetune.card import card
from finetune.checkpoints import MARKER, complete, read_json, write_json
from finetune.data import Data, load_data
from finetune.model import (
    load_base,
    load_tokenizer,
    num_parameters,
    num_trained,
    place_of,
    trainable,
)
from finetune.output import CHECKPOINTS, JOURNAL, PAGE, PLOT, REPORT, open_folder, save_weights
from finetune.phases import PhaseAccount
from finetune.plot import draw
from finetune.probe import load_probe
from finetune.processes import Processes, join, launched
from finetune.recipe import Recipe
from finetune.report import Grams, Outcome, Sizes, build, identity_of
from finetune.subject import Subject
from finetune.text import markdown
from finetune.trainer import make_trainer, num_steps
from finetune.watch import Progress, TrainingError, Watch
from greenllm.model.files import Weights, local_folder
from greenllm.model.options import resolve

Show = Callable[[Progress], None]
Say = Callable[[str], None]


def run(
    recipe: Recipe, account: PhaseAccount, grams: Grams, show: Show, say: Say
) -> dict[str, Any] | None:
    """Train, and return the report that was written; None in all processes but the main one.

    Raises:
        GreenllmError: before anything was trained, with the option or line to blame; or something
            could not be written.
    """
    warnings.simplefilter("ignore", FutureWarning)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    processes = launched()
    join(processes, place_of(recipe).device)
    checkpoint = _open(recipe, processes)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    subject = _subject(recipe, account, processes)
    say(_data_line(subject.data))
    identity = identity_of(recipe, Weights(local_folder(resolve(recipe.model))).digest(), began)
    torch.manual_seed(recipe.seed)
    base = load_base(recipe, subject.place)
    parameters = num_parameters(base)
    model = trainable(recipe, base)
    sizes = Sizes(parameters, num_trained(model), 0)
    with account.during("evaluation"):
        before = subject.look(model)
    watch = _watch(recipe, account, subject, show)
    status, reason = _train(subject, model, watch, checkpoint)
    with account.during("evaluation"):
        after = subject.look(model)
    if before is None or after is None:
        return None
    with account.during("saving"):
        sizes = replace(sizes, output_bytes=save_weights(recipe, model, subject.tokenizer))
    with account.during("compare"):
        comparator = compare.measure(subject, account.meter, watch.seen)
    outcome = Outcome(status, reason, before, after, comparator)
    found = build(recipe, identity, subject.data, sizes, watch, outcome, grams)
    write_json(recipe.folder / REPORT, found)
    return found


def write_pages(folder: Path, found: dict[str, Any]) -> None:
    """The report as Markdown, its plot, and the card."""
    draw(found, folder / PLOT)
    (folder / PAGE).write_text(markdown(found, PLOT), encoding="utf-8")
    (folder / "README.md").write_text(card(found), encoding="utf-8")


def _open(recipe: Recipe, processes: Processes) -> Path | None:
    """The main process makes the folder; the others find the same checkpoint in it."""
    checkpoint = open_folder(recipe) if processes.is_main else None
    processes.wait()
    if processes.is_main or not recipe.resume:
        return checkpoint
    return complete(recipe.folder / CHECKPOINTS)[-1]


def _subject(recipe: Recipe, account: PhaseAccount, processes: Processes) -> Subject:
    place, tokenizer = place_of(recipe), load_tokenizer(recipe)
    context = min(tokenizer.model_max_length, _context(recipe))
    with account.during("data"):
        data = load_data(recipe, tokenizer, context)
        probe = load_probe(recipe, tokenizer, context)
    return Subject(replace(recipe, max_length=recipe.max_length or context), place, tokenizer,
                   data, probe, processes)  # fmt: skip


def _context(recipe: Recipe) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(local_folder(resolve(recipe.model)))
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)


def _watch(recipe: Recipe, account: PhaseAccount, subject: Subject, show: Show) -> Watch:
    looked_j = account.spent("evaluation").total_j
    return Watch(
        account,
        recipe.folder / JOURNAL,
        total_tokens=subject.total_tokens(_steps(subject)),
        budget_j=None if recipe.budget_wh is None else recipe.budget_wh * 3600,
        reserve_j=looked_j,
        processes=subject.processes,
        show=show,
    )


def _steps(subject: Subject) -> int:
    return num_steps(subject.recipe, subject.data.train, subject.processes.count)


def _train(
    subject: Subject, model: Any, watch: Watch, checkpoint: Path | None
) -> tuple[str, str | None]:
    """How training ended, and why it did before its end."""
    data = (subject.data.train, subject.data.validation)
    trainer = make_trainer(
        subject.recipe, subject.place, model, subject.tokenizer, data, watch, _steps(subject)
    )
    if checkpoint is not None:
        journal = read_json(subject.recipe.folder / JOURNAL)
        watch.restore(read_json(checkpoint / MARKER) or {}, journal)
    try:
        with watch.interruptible():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
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
