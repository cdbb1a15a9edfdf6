"""What training every weight on the same tokens costs on this machine, to stand beside the bill.

Contract: `full` trains to the end, `sample` some steps and scales by tokens, and says so. Its
joules are a phase of their own, outside the bill. Not covered: comparing a full fine-tune.
"""

from __future__ import annotations

from typing import Any

from finetune.bill.journal import Seen
from finetune.bill.phases import LEARNING, PhaseAccount
from finetune.bill.report import phase_dict
from finetune.files import JOURNAL
from finetune.train.evaluation import evaluate
from finetune.train.model import load_base, num_trained, trainable
from finetune.train.setup import RunSetup
from finetune.train.training import make_trainer
from finetune.train.watch import RunWatch
from greenllm.energy.meters.protocol import Meter

SAMPLE_STEPS = 20


def measure(setup: RunSetup, meter: Meter, seen: Seen) -> dict[str, Any] | None:
    """Train fully and evaluate; None where nothing was trained on."""
    kind = setup.recipe.compare
    if not seen.tokens:
        return None
    folder = setup.recipe.folder / "compare"
    full = setup.aside(folder, method="full", learning_rate=None)
    steps = full.num_steps if kind == "full" else min(full.num_steps, SAMPLE_STEPS)
    own = PhaseAccount(meter, bills_idle=full.recipe.bill_idle)
    model = trainable(full.recipe, load_base(full.recipe, setup.device))
    watch = RunWatch(own, folder / JOURNAL, total_tokens=0)
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(full, model, watch, steps, saves=False)
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
        after = evaluate(setup, model, own)
        mean = None if after is None else after.losses.mean()
        found["validation_loss"] = mean.as_dict() if mean else None
        found["exact_match"] = after.matches.as_dict() if after and after.matches else None
    return found
