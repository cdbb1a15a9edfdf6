"""Everything a fine-tune depends on; TOML and flags fill the same fields.

Contract: a `Recipe` that exists is consistent in itself; what depends on the data or the model is
refused later, by name. Not covered: the environment, which belongs to the server.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune.options import (
    ADAPTER_RATE,
    FULL_RATE,
    BillOptions,
    BudgetOptions,
    ExampleOptions,
    MethodOptions,
    ObjectiveOptions,
    OutputOptions,
    ScoringOptions,
    TrainingOptions,
)
from greenllm.config import flag
from greenllm.options import CarbonOptions, DeviceOptions, ModelOptions, ThreadOptions

# Preferences are learnt gently: what they push down takes the rest of the model with it.
_DPO_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe(
    ModelOptions,
    ExampleOptions,
    OutputOptions,
    MethodOptions,
    ObjectiveOptions,
    TrainingOptions,
    ScoringOptions,
    BudgetOptions,
    DeviceOptions,
    ThreadOptions,
    BillOptions,
    CarbonOptions,
):
    """Everything a run depends on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_fit = self.name is None or self.is_adapter
        self.require(is_fit, "name", "is for adapters; a full model needs --output")
        is_scored = self.validation_share > 0 or self.validation is not None
        for name in ("sweep", "eval_every"):
            wanted = getattr(self, name) is not None
            self.require(
                is_scored or not wanted, "validation_share", f"must be above 0 for {flag(name)}"
            )
        if self.objective == "dpo":
            self._require_for_dpo()

    def _require_for_dpo(self) -> None:
        self.require(not self.packing, "packing", "does not go with --objective dpo")
        self.require(not self.dropout, "dropout", "does not go with --objective dpo")
        self.require(
            self.sweep is None,
            "sweep",
            "does not go with --objective dpo: the loss of the better answers alone, by which"
            " trials are ranked, does not say which preference is learnt",
        )

    @property
    def peak_rate(self) -> float:
        """The learning rate, the method's default where none was given."""
        usual = ADAPTER_RATE if self.is_adapter else FULL_RATE
        usual *= _DPO_SHARE if self.objective == "dpo" else 1.0
        rate = usual if self.learning_rate is None else self.learning_rate
        return rate * self.rate_multiplier
