"""What is trained, on what, and how far. Not covered: the model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data.dataset import TrainingData
from finetune.data.encoding import Encoded
from finetune.recipe import Recipe
from finetune.train.model import TorchDevice
from finetune.train.processes import Processes


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
