"""TRL's supervised trainer, with what a run here needs on top: a watch, and whole checkpoints.

Contract: the loss, the optimizer, the order of the data and resuming are TRL's and transformers'
own. A loss that is not a number ends the run before it reaches the weights.

Not covered: images, mixtures of experts, DeepSpeed.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import EarlyStoppingCallback, PrinterCallback
from trl import SFTConfig, SFTTrainer

from finetune.checkpoints import SavingError
from finetune.encoding import Encoded
from finetune.model import Place
from finetune.recipe import Recipe
from finetune.watch import TrainingError, Watch

IGNORED = -100
_SAVES = 10


class GreenTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains with a watch that counts, saves and stops."""

    def __init__(self, *, watch: Watch, **given: Any) -> None:
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
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if is_training and not torch.isfinite(loss).all():
            raise TrainingError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1}: a smaller"
                " --learning-rate may help; what is kept are the weights before that step"
            )
        return loss

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
            self._watch.mark(folder)


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


def num_steps(recipe: Recipe, train: Sequence[Encoded], num_processes: int) -> int:
    """Optimizer steps of a run."""
    if recipe.steps is not None:
        return recipe.steps
    rows = recipe.batch_size * recipe.accumulation * num_processes
    per_epoch = math.ceil(len(train) / rows)
    if recipe.tokens is None:
        return max(1, math.ceil(per_epoch * recipe.epochs))
    mean = sum(len(item.ids) for item in train) / per_epoch
    return max(1, math.ceil(recipe.tokens / mean))


def make_trainer(
    recipe: Recipe,
    place: Place,
    model: Any,
    tokenizer: Any,
    data: tuple[Sequence[Encoded], Sequence[Encoded]],
    watch: Watch,
    steps: int,
    *,
    saves: bool = True,
) -> GreenTrainer:
    """A trainer for one run."""
    disable_progress_bars()
    train, validation = data
    looks = recipe.eval_every is not None and bool(validation)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about packing without flash attention, which is exact here
        trainer = GreenTrainer(
            watch=watch,
            model=model,
            args=arguments(recipe, place, steps, looks=looks, saves=saves),
            train_dataset=rows_of(train),
            eval_dataset=rows_of(validation) if looks else None,
            processing_class=tokenizer,
        )
    if recipe.patience is not None and looks:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=recipe.patience))
    return trainer


def arguments(recipe: Recipe, place: Place, steps: int, *, looks: bool, saves: bool) -> SFTConfig:
    """The recipe in TRL's words."""
    is_cpu = place.device == "cpu"
    every = recipe.eval_every if looks else recipe.save_every
    return SFTConfig(
        output_dir=str(recipe.folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.peak_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=round(recipe.warmup_share * steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        packing=recipe.packing,
        max_length=recipe.max_length,
        train_sampling_strategy="random" if recipe.packing else "group_by_length",
        bf16=place.is_half,
        use_cpu=is_cpu,
        dataloader_pin_memory=not is_cpu,
        gradient_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if looks else "no",
        eval_steps=recipe.eval_every if looks else None,
        save_strategy="steps" if saves else "no",
        save_steps=every or max(1, steps // _SAVES),
        save_total_limit=2,
        load_best_model_at_end=looks,
        metric_for_best_model="eval_loss" if looks else None,
        greater_is_better=False if looks else None,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
    )
