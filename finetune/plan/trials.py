"""Runs a sweep's trials: short trainings that leave nothing but their scores and their joules.

Contract: every joule of a trial is booked to the phase `trials`. Not covered: trials at once.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune.bill.phases import PhaseAccount
from finetune.plan.sweep import Trial, best, rungs, settings_of, with_settings
from finetune.train import scoring
from finetune.train.model import load_base, trainable
from finetune.train.subject import Subject
from finetune.train.training import make_trainer
from finetune.train.watch import TrainingError, Watch

Say = Callable[[str], None]


def sweep(
    subject: Subject,
    account: PhaseAccount,
    steps: int,
    say: Say,
    keep: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[Trial]]:
    """The best settings, and every trial there was; `keep` is called after each rung."""
    alive = settings_of(subject.recipe.sweep or "")
    done: list[Trial] = []
    with account.during("trials"):
        for count, length in rungs(len(alive), steps):
            ranked = [_try(subject, account, settings, length) for settings in alive[:count]]
            done += ranked
            keep()
            for trial in ranked:
                say(f"trial {trial.settings}, {length} steps: {_score(trial)}")
            alive = [trial.settings for trial in best(ranked, -(-count // 2))]
    say(f"the sweep chose {alive[0]}")
    return alive[0], done


def _score(trial: Trial) -> str:
    found = trial.validation_loss
    return "failed" if found is None else f"validation loss {found:.4f}"


def _try(subject: Subject, account: PhaseAccount, settings: dict[str, Any], steps: int) -> Trial:
    """Train a fresh model for some steps and score it."""
    folder = subject.recipe.folder / "trial"
    recipe = replace(
        with_settings(subject.recipe, settings), output=folder, name=None, eval_every=None,
        patience=None, budget_wh=None, resume=False,
    )  # fmt: skip
    account.read()
    before_j = account.spent("trials").total_j
    folder.mkdir(exist_ok=True)
    model = trainable(recipe, load_base(recipe, subject.place))
    own = Watch(PhaseAccount(account.meter), folder / "journal.json", total_tokens=0)
    trainer = make_trainer(replace(subject, recipe=recipe), model, own, steps, saves=False)
    loss: float | None
    try:
        trainer.train()
        loss = _loss(subject, model)
    except TrainingError:
        loss = None
    shutil.rmtree(folder, ignore_errors=True)
    account.read()
    spent_j = account.spent("trials").total_j - before_j
    return Trial(settings, steps, loss, spent_j if account.is_known else None)


def _loss(subject: Subject, model: Any) -> float | None:
    model.eval()
    pad = subject.tokenizer.pad_token_id
    mean = scoring.losses_of(model, subject.data.validation, subject.place, pad).mean()
    return mean.value if mean is not None and math.isfinite(mean.value) else None
