"""What is trained, on what, and how far. Not covered: the model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from trl import SFTConfig, pack_dataset

from finetune.bill.phases import PhaseAccount
from finetune.data.dataset import TrainingData, load_data
from finetune.data.encoding import Encoded
from finetune.data.probe import load_probe
from finetune.recipe import Recipe
from finetune.train.distilling import load_teacher
from finetune.train.model import TorchDevice, device_of, load_tokenizer
from finetune.train.processes import Processes
from finetune.train.trainer import rows_of
from greenllm.config import ConfigError
from greenllm.model.files import local_folder
from greenllm.model.options import resolve


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run works with from its first step to its last.

    `num_rows` is how many rows the examples make: as many, or fewer where they are packed.
    """

    recipe: Recipe
    device: TorchDevice
    tokenizer: Any
    data: TrainingData
    probe: Sequence[Encoded]
    processes: Processes
    num_rows: int
    teacher: Any | None = None

    def aside(self, folder: Path, **changes: Any) -> RunSetup:
        """The same for a training beside the run's, which stops for nothing and is not kept."""
        recipe = replace(
            self.recipe, output=folder, name=None, eval_every=None, patience=None, budget_wh=None,
            resume=False, **changes,
        )  # fmt: skip
        return replace(self, recipe=recipe)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        recipe = self.recipe
        if recipe.steps is not None:
            return recipe.steps
        per_epoch = math.ceil(self.num_rows / self._rows_per_step)
        if recipe.tokens is None:
            return max(1, math.ceil(per_epoch * recipe.epochs))
        return max(1, math.ceil(recipe.tokens * per_epoch / self.data.counts.train_tokens))

    def tokens_of(self, steps: int) -> int:
        """Tokens that so many steps are going to see, by the mean."""
        return round(steps * self._rows_per_step * self.data.counts.train_tokens / self.num_rows)

    @property
    def _rows_per_step(self) -> int:
        return self.recipe.batch_size * self.recipe.accumulation * self.processes.count


def load_setup(recipe: Recipe, account: PhaseAccount, processes: Processes) -> RunSetup:
    """Everything that a recipe names but the model.

    Raises:
        GreenllmError: something cannot be read, or does not go with the rest.
    """
    device, tokenizer = device_of(recipe), load_tokenizer(recipe)
    config = AutoConfig.from_pretrained(local_folder(resolve(recipe.model)))
    longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    context = min(tokenizer.model_max_length, longest)
    with account.during("data"):
        data = load_data(recipe, tokenizer, context)
        probe = load_probe(recipe, tokenizer, context)
    recipe = replace(recipe, max_length=recipe.max_length or context)
    teacher = load_teacher(recipe, device, tokenizer)
    if recipe.eval_every is not None and not data.validation:
        raise ConfigError(
            f"--eval-every {recipe.eval_every}: of {data.counts.train} examples none is held out"
            " to score on; give --validation, or more examples",
            "eval_every",
        )
    rows = len(data.train)
    if recipe.packing:
        strategy = SFTConfig.packing_strategy
        rows = len(pack_dataset(rows_of(data.train), recipe.max_length, strategy))
    return RunSetup(recipe, device, tokenizer, data, probe, processes, rows, teacher)
