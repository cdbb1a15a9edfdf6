"""TRL's trainers, with what a run here needs on top: a watch, and whole checkpoints.

Contract: the loss, the optimizer, the order of the data and resuming are TRL's and transformers'
own. A loss that is not a number ends the run before it reaches the weights.

Not covered: images, mixtures of experts, DeepSpeed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PrinterCallback, Trainer
from trl import SFTTrainer

from finetune.data.encoding import Encoded
from finetune.files import MARKER, SavingError
from finetune.train.watch import RunWatch, TrainingError

IGNORED = -100


class Watched(Trainer):  # type: ignore[misc]
    """Put before one of TRL's trainers: trains with a watch that counts, saves and stops."""

    def __init__(self, *, watch: RunWatch, **given: Any) -> None:
        self._watch = watch
        super().__init__(callbacks=[watch], **given)
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, which is counted where it trains.

        Raises:
            TrainingError: it is not a number.
        """
        is_training = model.training
        if is_training:
            self._watch.count(inputs)
        loss = self.plain_loss(model, inputs, *args, **kwargs)
        if is_training and not torch.isfinite(loss).all():
            raise TrainingError(f"the loss is {float(loss)}", self.state.global_step + 1)
        return loss

    def plain_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own."""
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Score on the validation examples, on their own phase of the bill."""
        with self._watch.account.during("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with self._watch.account.during("saving"):
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:  # safetensors has an error class of its own for full disks
                if self.args.should_save:
                    shutil.rmtree(folder, ignore_errors=True)
                raise SavingError(
                    f"cannot write {folder}: {error}; earlier checkpoints are whole: make room"
                    " and go on with --resume"
                ) from error
        if self.args.should_save:
            self._watch.journal().write(folder / MARKER)


class GreenTrainer(Watched, SFTTrainer):  # type: ignore[misc]
    """Supervised training, and what objectives of token by token build on."""

    def per_token(
        self, total: torch.Tensor, labels: torch.Tensor, num_items: Any = None
    ) -> torch.Tensor:
        """A sum over learnt tokens as their mean: over all passes and processes of a step.

        `num_items` are the learnt tokens of the whole step, as the trainer hands them to a loss.
        """
        if num_items is None:
            return total / (labels[:, 1:] != IGNORED).sum().clamp(min=1)
        mean: torch.Tensor = total * self.accelerator.num_processes / num_items
        return mean


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed over learnt tokens; logits at one place are about the next."""
    return functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def rows_of(items: Sequence[Encoded]) -> Dataset:
    """What the trainer reads: ids, and labels where they are learnt."""
    return Dataset.from_dict(
        {
            "input_ids": [list(item.ids) for item in items],
            "labels": [
                [
                    token if learnt else IGNORED
                    for token, learnt in zip(item.ids, item.learnt, strict=True)
                ]
                for item in items
            ],
        }
    )
