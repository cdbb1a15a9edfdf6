"""Learning to prefer the better of two answers: TRL's DPO on the pairs that were read.

Source: Rafailov et al., arXiv:2305.18290. The reference is the model as it was before: an adapter's
base, or a second copy where every weight is trained.

Not covered: other losses of preferences; adapters on the output head (TRL refuses them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import DPOTrainer

from finetune.data.encoding import Encoded
from finetune.train.trainer import Watched
from greenllm.config import ConfigError


class PreferenceTrainer(Watched, DPOTrainer):  # type: ignore[misc]
    """DPO on rows that are encoded already."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValueError as error:
            raise ConfigError(f"--objective dpo: {error}", "objective") from error
        if "ref" in getattr(self.model, "peft_config", {}):
            # TRL's copy of the adapter to refer to: a fresh one changes nothing, the base will do.
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def pairs_of(items: Sequence[Encoded]) -> Dataset:
    """What the trainer reads: prompts, and both answers."""
    rows = [(item, item.rejected) for item in items if item.rejected is not None]
    return Dataset.from_dict(
        {
            "prompt_ids": [list(item.prompt_ids) for item, _ in rows],
            "chosen_ids": [list(item.ids[len(item.prompt_ids) :]) for item, _ in rows],
            "rejected_ids": [list(worse.ids[len(worse.prompt_ids) :]) for _, worse in rows],
        }
    )
