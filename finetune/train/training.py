"""From a recipe to a trainer: which arguments, which objective.

Not covered: running it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import EarlyStoppingCallback, TrainerState
from trl import DPOConfig, SFTConfig

from finetune.data.encoding import Encoded
from finetune.recipe import Recipe
from finetune.train.distilling import DistillTrainer
from finetune.train.exits import ExitTrainer, exits_of
from finetune.train.model import TorchDevice, load_base
from finetune.train.preferences import PreferenceTrainer, pairs_of
from finetune.train.setup import RunSetup
from finetune.train.trainer import GreenTrainer, Watched, rows_of
from finetune.train.watch import RunWatch

_SAVES = 10


def make_trainer(
    setup: RunSetup, model: Any, watch: RunWatch, steps: int, *, saves: bool = True
) -> Watched:
    """A trainer for one run; it evaluates on the validation examples where the recipe says so.

    Without saving it does not: the best one could not be kept.

    Raises:
        ConfigError: the objective and the model do not go together.
    """
    disable_progress_bars()
    recipe, data = setup.recipe, setup.data
    evaluates = saves and recipe.eval_every is not None and bool(data.validation)
    rows = rows_for(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about packing without flash attention, which is exact here
        trainer = _kind(setup, model)(
            watch=watch,
            model=model,
            args=arguments(recipe, setup.device, steps, evaluates=evaluates, saves=saves),
            train_dataset=rows(data.train),
            eval_dataset=rows(data.validation) if evaluates else None,
            processing_class=setup.tokenizer,
        )
    if recipe.patience is not None and evaluates:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=recipe.patience))
    return trainer


def load_last(trainer: Watched, checkpoint: Path) -> None:
    """The weights of a training that was at its end; transformers would go one step further."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    keeps_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    trainer._load_from_checkpoint(state.best_model_checkpoint if keeps_best else str(checkpoint))


def rows_for(recipe: Recipe) -> Callable[[Sequence[Encoded]], Dataset]:
    """What makes rows for the recipe's trainer."""
    return pairs_of if recipe.objective == "dpo" else rows_of


def _kind(setup: RunSetup, model: Any) -> Callable[..., Watched]:
    """The trainer for an objective."""
    recipe = setup.recipe
    if recipe.objective == "layerskip":
        return partial(ExitTrainer, exits=exits_of(recipe, model), exit_weight=recipe.exit_weight)
    if recipe.objective == "distill":
        return partial(
            DistillTrainer, teacher=setup.teacher, weight=recipe.teacher_weight,
            temperature=recipe.teacher_temperature,
        )  # fmt: skip
    if recipe.objective == "dpo":
        reference = None if recipe.is_adapter else load_base(recipe, setup.device)
        return partial(PreferenceTrainer, ref_model=reference)
    return GreenTrainer


def arguments(
    recipe: Recipe, device: TorchDevice, steps: int, *, evaluates: bool, saves: bool
) -> SFTConfig | DPOConfig:
    """The recipe in TRL's words."""
    is_cpu = device.name == "cpu"
    every = recipe.eval_every if evaluates else recipe.save_every
    own: dict[str, Any]
    if recipe.objective == "dpo":  # pairs have no one length to group by
        make, own = DPOConfig, {"beta": recipe.beta, "max_length": None}
    else:
        sampling = "random" if recipe.packing else "group_by_length"
        make, own = SFTConfig, {"packing": recipe.packing, "max_length": recipe.max_length,
                                "train_sampling_strategy": sampling}  # fmt: skip
    return make(
        **own,
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
        bf16=device.is_half,
        use_cpu=is_cpu,
        dataloader_pin_memory=not is_cpu,
        gradient_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.eval_every if evaluates else None,
        save_strategy="steps" if saves else "no",
        save_steps=every or max(1, steps // _SAVES),
        save_total_limit=2,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
    )
