"""Runs a sweep's trials: short trainings that leave nothing but their scores and their joules.

Contract: every joule of a trial is booked to the phase `trials`. Not covered: trials at once.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

from finetune.bill.phases import PhaseAccount
from finetune.files import JOURNAL
from finetune.plan.sweep import SweepTrial, best, rungs, settings_of
from finetune.train.evaluation import losses_of
from finetune.train.model import load_base, trainable
from finetune.train.setup import RunSetup
from finetune.train.training import make_trainer
from finetune.train.watch import RunWatch, TrainingError

Say = Callable[[str], None]


def sweep(
    setup: RunSetup, account: PhaseAccount, say: Say, keep: Callable[[], None]
) -> tuple[dict[str, Any], list[SweepTrial]]:
    """The best settings, and every trial there was; `keep` is called after each rung."""
    alive = settings_of(setup.recipe.sweep or "")
    done: list[SweepTrial] = []
    with account.during("trials"):
        for count, length in rungs(len(alive), setup.num_steps):
            ranked = [_try(setup, account, settings, length) for settings in alive[:count]]
            done += ranked
            keep()
            for trial in ranked:
                say(f"trial {trial.settings}, {length} steps: {_score(trial)}")
            alive = [trial.settings for trial in best(ranked, -(-count // 2))]
    say(f"the sweep chose {alive[0]}")
    return alive[0], done


def _score(trial: SweepTrial) -> str:
    found = trial.validation_loss
    return "failed" if found is None else f"validation loss {found:.4f}"


def _try(
    setup: RunSetup, account: PhaseAccount, settings: dict[str, Any], steps: int
) -> SweepTrial:
    """Train a fresh model for some steps and score it."""
    folder = setup.recipe.folder / "trial"
    trial = setup.aside(folder, **settings)
    account.read()
    before_j = account.spent("trials").total_j
    folder.mkdir(exist_ok=True)
    model = trainable(trial.recipe, load_base(trial.recipe, setup.device))
    own = RunWatch(PhaseAccount(account.meter), folder / JOURNAL, total_tokens=0)
    trainer = make_trainer(trial, model, own, steps, saves=False)
    loss: float | None
    try:
        trainer.train()
        loss = _loss(setup, model)
    except TrainingError:
        loss = None
    shutil.rmtree(folder, ignore_errors=True)
    account.read()
    spent_j = account.spent("trials").total_j - before_j
    return SweepTrial(settings, steps, loss, spent_j if account.is_known else None)


def _loss(setup: RunSetup, model: Any) -> float | None:
    model.eval()
    pad = setup.tokenizer.pad_token_id
    mean = losses_of(model, setup.data.validation, setup.device, pad).mean()
    return mean.value if mean is not None and math.isfinite(mean.value) else None
