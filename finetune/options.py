"""Options of a fine-tune in groups, each declared once, with its help and the rules for its values.

Not covered: rules that need options of several groups, which are `Recipe`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from greenllm.config import ConfigError, Options, option
from greenllm.model.adapter_folders import is_name
from greenllm.options import (
    DataOptions,
    MeterOptions,
)

Method = Literal["lora", "qlora", "dora", "rslora", "full"]
Objective = Literal["sft", "layerskip", "dpo", "distill"]
TooLong = Literal["drop", "truncate", "refuse"]

# Adapters have few, fresh parameters and take a far larger rate than weights that know something.
ADAPTER_RATE, FULL_RATE = 2e-3, 2e-4
# Options that mean nothing with another objective.
_OF_OBJECTIVE: Mapping[Objective, tuple[str, ...]] = {
    "layerskip": ("exits", "exit_weight"),
    "dpo": ("beta",),
    "distill": ("teacher", "teacher_weight", "teacher_temperature"),
}


@dataclass(frozen=True, kw_only=True)
class ExampleOptions(Options):
    """Which examples, and how they are read."""

    panel = "Data"

    data: str | None = option(
        None,
        "JSONL file with messages, prompt and completion, text, or prompt, chosen and rejected;"
        " 'example'; or a hub dataset's id.",
    )
    validation: Path | None = option(None, "JSONL file to score on; default is a share of data.")
    validation_share: float = option(0.1, "Share of the data to hold out if no file is given.")
    template: Literal["auto", "chat", "none"] = option(
        "auto",
        "auto, chat or none: whether prompt and completion are put into the tokenizer's chat"
        " template; auto does if there is one.",
    )
    max_length: int | None = option(None, "Longest example in tokens; default is the context.")
    too_long: TooLong = option(
        "drop", "drop, truncate or refuse: what to do with longer examples; they are counted."
    )
    packing: bool = option(
        False, "Put several examples into one row, separated; pays with flash attention."
    )
    deduplicate: bool = option(True, "Leave out duplicate examples.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("max_length")
        _require_share(self, "validation_share")


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Options):
    """Which weights are trained."""

    panel = "Method"

    method: Method = option(
        "lora", "lora, qlora (base in 4 bits), dora, rslora, or full (every weight)."
    )
    rank: int = option(8, "Rank of the adapter.")
    alpha: float | None = option(None, "Scale of the adapter; default is twice the rank.")
    dropout: float = option(0.0, "Dropout before the adapter, 0 to below 1.")
    targets: tuple[str, ...] = option(
        ("all-linear",), "Modules that get an adapter, comma-separated, or all-linear."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("rank", "alpha")
        _require_share(self, "dropout")
        self.require(bool(self.targets), "targets", "must name at least one module")

    @property
    def is_adapter(self) -> bool:
        """Whether the base model stays as it is."""
        return self.method != "full"

    @property
    def scale(self) -> float:
        """Alpha of the adapter."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(Options):
    """What is learnt."""

    panel = "Objective"

    objective: Objective = option(
        "sft",
        "sft; layerskip: train early exits too; dpo: prefer the better of two answers; or"
        " distill: learn from a teacher's probabilities.",
    )
    exits: tuple[int, ...] = option(
        (), "Layers after which layerskip trains an exit; default is a third and half of them."
    )
    exit_weight: float = option(0.5, "Weight of the exits' mean loss beside the last layer's.")
    beta: float = option(0.1, "How close dpo keeps the model to what it was before.")
    teacher: str | None = option(
        None, "Model that distill learns from, with the same vocabulary: as for --model."
    )
    teacher_weight: float = option(
        0.5,
        "Weight of the teacher's probabilities in distill, above 0 to 1; the rest is the data's.",
    )
    teacher_temperature: float = option(1.0, "Above 1, unlikely tokens weigh more in distill.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("exit_weight", "beta", "teacher_weight", "teacher_temperature")
        self.require(self.teacher_weight <= 1, "teacher_weight", "must not be above 1")
        defaults = {field.name: field.default for field in fields(self)}
        for objective, names in _OF_OBJECTIVE.items():
            for name in names if objective != self.objective else ():
                is_unset = getattr(self, name) == defaults[name]
                self.require(is_unset, name, f"goes with --objective {objective}")
        if self.objective == "distill":
            self.require(self.teacher is not None, "teacher", "is needed for --objective distill")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How long is trained, and with which steps."""

    panel = "Training"

    epochs: float = option(3.0, "Passes over the data, unless steps or tokens are given.")
    steps: int | None = option(None, "Optimizer steps, instead of epochs.")
    tokens: int | None = option(None, "Tokens to train on, instead of epochs; rounded up to steps.")
    batch_size: int = option(8, "Examples in one pass, on each device.")
    accumulation: int = option(1, "Passes for one optimizer step.")
    learning_rate: float | None = option(
        None,
        f"Peak rate; default is {ADAPTER_RATE:g} for adapters, {FULL_RATE:g} for full, and a"
        " tenth of it for dpo.",
    )
    rate_multiplier: float = option(1.0, "The learning rate is multiplied by this.")
    schedule: Literal["linear", "cosine", "constant"] = option(
        "cosine", "linear, cosine or constant: how the rate falls."
    )
    warmup_share: float = option(0.03, "Share of the steps in which the rate rises.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "auto, float32 or bfloat16: arithmetic; auto is bfloat16 where it is faster."
    )
    gradient_checkpointing: bool = option(False, "Compute activations twice to save memory.")
    sweep: str | None = option(
        None,
        "Settings to try first, by successive halving: 'learning_rate=1e-3,4e-3;rank=4,16'.",
    )
    seed: int = option(7, "Seed of everything random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero(
            "epochs", "steps", "tokens", "batch_size", "accumulation", "learning_rate",
            "rate_multiplier", "max_grad_norm",
        )  # fmt: skip
        _require_share(self, "warmup_share")
        self.require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self.require(self.steps is None or self.tokens is None, "tokens", "excludes --steps")


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Options):
    """When the model is scored and saved, and what it is compared with."""

    panel = "Scores and checkpoints"

    eval_every: int | None = option(None, "Steps between two evaluations of the validation loss.")
    patience: int | None = option(
        None, "Stop after so many evaluations without a better validation loss (needs eval_every)."
    )
    save_every: int | None = option(
        None,
        "Steps between two checkpoints; default is a tenth, or every evaluation of eval_every.",
    )
    resume: bool = option(False, "Continue from the last complete checkpoint in the output folder.")
    answers: int = option(64, "Validation prompts that are answered, for exact matches.")
    probe: Path | None = option(
        None, "Text file that training must not make worse; default is a built-in sample."
    )
    compare: Literal["none", "full", "sample"] = option(
        "none",
        "none, full or sample: train every weight on the same tokens too, to compare the joules;"
        " sample does 20 steps of it and scales.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("eval_every", "patience", "save_every")
        self.require(self.answers >= 0, "answers", "must not be negative")
        has_looks = self.eval_every is not None
        self.require(self.patience is None or has_looks, "patience", "needs --eval-every")
        self.require(
            self.save_every is None or not has_looks,
            "save_every",
            "does not go with --eval-every, whose every look saves a checkpoint",
        )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """What the run may cost, and when it may run."""

    panel = "Budget and time"

    budget_wh: float | None = option(
        None, "Watt-hours that the run may cost, scoring included; training stops in time."
    )
    plan: bool = option(False, "Only forecast what the run would cost, from a few batches.")
    start: Literal["now", "greenest"] = option(
        "now", "now or greenest: wait for the greenest period of --intensity-series."
    )
    deadline: str | None = option(None, "Latest end of the run, from now: 30m, 12h or 2d.")
    intensity_series: Path | None = option(
        None, "CSV file with the columns time and g_per_kwh: a forecast of the grid."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("budget_wh")
        is_timed = self.start == "greenest"
        for name in ("deadline", "intensity_series"):
            given = getattr(self, name) is not None
            self.require(given == is_timed, name, "goes with --start greenest")


@dataclass(frozen=True, kw_only=True)
class BillOptions(MeterOptions):
    """What joules are billed."""

    bill_idle: bool = option(
        True, "Bill the machine's idle power too; off if a server beside it bills it."
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(DataOptions):
    """Where the result goes."""

    name: str | None = option(
        None, "Name of the adapter: written to DATA_DIR/adapters/NAME, where servers find it."
    )
    output: Path | None = option(
        None, "Folder to write instead: adapter or model, report and card."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.name is None) == (self.output is None):
            raise ConfigError(
                "give --name, for an adapter that servers find by it, or --output, a folder"
            )
        is_fit = self.name is None or is_name(self.name)
        self.require(is_fit, "name", "must be letters, digits and . _ - (no dot first)")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.output or self.adapters_path / (self.name or "")

    @property
    def is_in_data_dir(self) -> bool:
        """Whether servers find the result by its name."""
        return self.output is None


def _require_share(options: Options, name: str) -> None:
    is_share = 0 <= getattr(options, name) < 1
    options.require(is_share, name, "must be at least 0 and below 1")
