"""What is trained, on what, and how it is looked at. Not covered: the model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.bill.phases import PHASES, PhaseAccount
from finetune.bill.quality import Quality
from finetune.data.dataset import Data
from finetune.data.encoding import Encoded
from finetune.recipe import Recipe
from finetune.train import scoring
from finetune.train.exits import agreements, exits_of
from finetune.train.model import Place
from finetune.train.processes import Processes


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained, on what, and how it is looked at.

    `num_rows` is how many rows the examples make: as many, or fewer where they are packed.
    """

    recipe: Recipe
    place: Place
    tokenizer: Any
    data: Data
    probe: Sequence[Encoded]
    processes: Processes
    num_rows: int
    teacher: Any | None = None

    def look(self, model: Any, account: PhaseAccount) -> Quality | None:
        """Quality now; None in all processes but the main one, which wait."""
        found = self._measured(model, account) if self.processes.is_main else None
        self.processes.wait()
        return found

    def _measured(self, model: Any, account: PhaseAccount) -> Quality:
        """A look with what it cost."""
        account.read()
        before = account.spent(*PHASES)
        found = self._look(model, account)
        account.read()
        return replace(found, cost=account.spent(*PHASES).minus(before))

    def _look(self, model: Any, account: PhaseAccount) -> Quality:
        items, answers = self.data.validation, self.recipe.answers

        def spent_j() -> float | None:
            account.read()
            return account.spent(*PHASES).total_j if account.is_known else None

        found = scoring.look(model, items, self.probe, self.place, self.tokenizer, answers, spent_j)
        if self.recipe.objective != "layerskip":
            return found
        exits, pad = exits_of(self.recipe, model), self.tokenizer.pad_token_id
        return replace(found, exits=agreements(model, exits, items, self.place, pad))

    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        recipe = self.recipe
        if recipe.steps is not None:
            return recipe.steps
        per_step = recipe.batch_size * recipe.accumulation * self.processes.count
        per_epoch = math.ceil(self.num_rows / per_step)
        if recipe.tokens is None:
            return max(1, math.ceil(per_epoch * recipe.epochs))
        return max(1, math.ceil(recipe.tokens * per_epoch / self.data.counts.train_tokens))

    def total_tokens(self, steps: int) -> int:
        """Tokens that so many steps are going to see, by the mean."""
        rows = steps * self.recipe.batch_size * self.recipe.accumulation * self.processes.count
        return round(rows * self.data.counts.train_tokens / self.num_rows)
