"""What training every weight on the same tokens costs on this machine, to stand beside the bill.

Contract: `full` trains to the end, `sample` some steps and scales by tokens, and says so. Its
joules are a phase of their own, outside the bill. Not covered: comparing a full fine-tune.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune.bill.journal import Seen
from finetune.bill.phases import LEARNING, PhaseAccount
from finetune.bill.report import phase_dict
from finetune.train.model import load_base, num_trained, trainable
from finetune.train.subject import Subject
from finetune.train.training import make_trainer
from finetune.train.watch import Watch
from greenllm.energy.meters.protocol import Meter

SAMPLE_STEPS = 20


def measure(subject: Subject, meter: Meter, seen: Seen) -> dict[str, Any] | None:
    """Train fully and look at it; None where nothing was trained on."""
    kind = subject.recipe.compare
    if not seen.tokens:
        return None
    recipe = replace(
        subject.recipe, method="full", learning_rate=None, eval_every=None, patience=None,
        budget_wh=None, resume=False, name=None, output=subject.recipe.folder / "compare",
    )  # fmt: skip
    steps = replace(subject, recipe=recipe).num_steps()
    if kind == "sample":
        steps = min(steps, SAMPLE_STEPS)
    own = PhaseAccount(meter, bills_idle=recipe.bill_idle)
    model = trainable(recipe, load_base(recipe, subject.place))
    watch = Watch(own, recipe.folder / "journal.json", total_tokens=0)
    recipe.folder.mkdir(exist_ok=True)
    trainer = make_trainer(replace(subject, recipe=recipe), model, watch, steps, saves=False)
    trainer.train()
    own.begin("evaluation")
    spent = own.spent(*LEARNING)
    scale = seen.tokens / watch.seen.tokens
    found: dict[str, Any] = {
        "kind": "measured" if kind == "full" else f"scaled from {steps} steps",
        "method": "full",
        "steps": steps,
        "tokens": watch.seen.tokens,
        "trained_parameters": num_trained(model),
        "training": phase_dict(spent),
        "training_j_for_same_tokens": spent.total_j * scale if own.is_known else None,
    }
    if kind == "full":
        after = subject.look(model, own)
        mean = None if after is None else after.losses.mean()
        found["validation_loss"] = mean.as_dict() if mean else None
        found["exact_match"] = after.matches.as_dict() if after and after.matches else None
    return found
