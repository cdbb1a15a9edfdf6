"""Options of a fine-tune: each declared once, with its help; TOML and flags fill the same fields.

Contract: a `Recipe` that exists is consistent in itself; what depends on the data or the model is
refused later, by name. Not covered: the environment, which belongs to the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from greenllm.config import ConfigError, default_data_dir, flag, option
from greenllm.model.adapter_folders import is_name

Method = Literal["lora", "qlora", "dora", "rslora", "full"]
Objective = Literal["sft", "layerskip", "dpo", "distill"]
TooLong = Literal["drop", "truncate", "refuse"]

# Adapters have few, fresh parameters and take a far larger rate than weights that know something.
_ADAPTER_RATE, _FULL_RATE = 2e-3, 2e-4
# Preferences are learnt gently: what they push down takes the rest of the model with it.
_DPO_SHARE = 0.1
# Options that mean nothing with another objective.
_OF_OBJECTIVE: Mapping[Objective, tuple[str, ...]] = {
    "layerskip": ("exits", "exit_weight"),
    "dpo": ("beta",),
    "distill": ("teacher", "teacher_weight", "teacher_temperature"),
}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run depends on."""

    model: str = option("bundled", "Model folder, hub id, or 'bundled'.")
    data: str | None = option(
        None,
        "JSONL file with messages, prompt and completion, text, or prompt, chosen and rejected;"
        " 'example'; or a hub dataset's id.",
    )
    name: str | None = option(
        None, "Name of the adapter: written to DATA_DIR/adapters/NAME, where servers find it."
    )
    output: Path | None = option(
        None, "Folder to write instead: adapter or model, report and card."
    )
    data_dir: Path | None = option(
        None, "Folder with `adapters` in it (env GREENLLM_DATA_DIR); default is the platform's."
    )
    method: Method = option(
        "lora", "lora, qlora (base in 4 bits), dora, rslora, or full (every weight)."
    )
    objective: Objective = option(
        "sft",
        "sft; layerskip: train exits too, so that the model can be left early; dpo: prefer the"
        " better of two answers; or distill: learn what a teacher would say.",
    )
    exits: tuple[int, ...] = option(
        (), "Layers after which layerskip trains an exit; default is a third and half of them."
    )
    exit_weight: float = option(0.5, "Weight of the exits' mean loss beside the last layer's.")
    beta: float = option(0.1, "How closely dpo holds the model to what it was before.")
    teacher: str | None = option(
        None, "Model that distill learns from, with the same vocabulary: as for --model."
    )
    teacher_weight: float = option(
        0.5, "Weight of the teacher's word in distill, above 0 to 1; the rest is the data's."
    )
    teacher_temperature: float = option(1.0, "Above 1, distill hears unlikely tokens better.")
    rank: int = option(8, "Rank of the adapter.")
    alpha: float | None = option(None, "Scale of the adapter; default is twice the rank.")
    dropout: float = option(0.0, "Dropout before the adapter, 0 to below 1.")
    targets: tuple[str, ...] = option(
        ("all-linear",), "Modules that get an adapter, comma-separated, or all-linear."
    )
    learning_rate: float | None = option(
        None,
        f"Peak rate; default is {_ADAPTER_RATE:g} for adapters, {_FULL_RATE:g} for full, and a"
        " tenth of it for dpo.",
    )
    rate_multiplier: float = option(1.0, "The learning rate is multiplied by this.")
    schedule: Literal["linear", "cosine", "constant"] = option(
        "cosine", "linear, cosine or constant: how the rate falls."
    )
    warmup_share: float = option(0.03, "Share of the steps in which the rate rises.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.")
    epochs: float = option(3.0, "Passes over the data, unless steps or tokens are given.")
    steps: int | None = option(None, "Optimizer steps, instead of epochs.")
    tokens: int | None = option(None, "Tokens to train on, instead of epochs; rounded up to steps.")
    batch_size: int = option(8, "Examples in one pass, on each device.")
    accumulation: int = option(1, "Passes for one optimizer step.")
    packing: bool = option(
        False, "Several examples in one row, apart from each other; pays with flash attention."
    )
    max_length: int | None = option(None, "Longest example in tokens; default is the context.")
    too_long: TooLong = option(
        "drop", "drop, truncate or refuse: what is done with longer examples; counted."
    )
    template: Literal["auto", "chat", "none"] = option(
        "auto",
        "auto, chat or none: whether prompt and completion are put into the tokenizer's chat"
        " template; auto does where there is one.",
    )
    deduplicate: bool = option(True, "Leave out examples that are there twice.")
    validation: Path | None = option(None, "JSONL file to score on; default is a share of data.")
    validation_share: float = option(0.1, "Share of the data held out where no file is given.")
    eval_every: int | None = option(None, "Steps between two looks at the validation loss.")
    patience: int | None = option(
        None, "Stop after so many looks without a better validation loss (needs eval_every)."
    )
    save_every: int | None = option(
        None, "Steps between two checkpoints; default is a tenth, or every look of eval_every."
    )
    resume: bool = option(False, "Go on from the last complete checkpoint in the output folder.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "auto, float32 or bfloat16: arithmetic; auto is bfloat16 where it is faster."
    )
    gradient_checkpointing: bool = option(False, "Compute activations twice to save memory.")
    seed: int = option(7, "Seed of everything random.")
    budget_wh: float | None = option(
        None, "Watt-hours the run may cost, scoring included: training stops in time for it."
    )
    compare: Literal["none", "full", "sample"] = option(
        "none",
        "none, full or sample: train every weight on the same tokens too, to compare the joules;"
        " sample does 20 steps of it and scales.",
    )
    sweep: str | None = option(
        None,
        "Settings to try first, by successive halving: 'learning_rate=1e-3,4e-3;rank=4,16'.",
    )
    plan: bool = option(False, "Only say what the run would cost, from a few batches.")
    start: Literal["now", "greenest"] = option(
        "now", "now or greenest: wait for the greenest window of --intensity-series."
    )
    deadline: str | None = option(
        None, "When it must be done at the latest, from now: 30m, 12h or 2d."
    )
    intensity_series: Path | None = option(
        None, "CSV file with the columns time and g_per_kwh: a forecast of the grid."
    )
    answers: int = option(64, "Validation prompts that are answered, for exact matches.")
    probe: Path | None = option(
        None, "Text file that training must not make worse; default is a built-in sample."
    )
    device: str = option("auto", "cpu, cuda, cuda:N or auto (CUDA where there is one).")
    threads: int | None = option(None, "CPU threads; default is torch's.")
    meter: str = option("auto", "auto, nvml, rapl, hwmon, modelled or replay:FILE.")
    bill_idle: bool = option(
        True, "Bill what the machine draws anyway; off where a server beside it does."
    )
    zone: str = option("WORLD", "Grid zone for grams of CO2e: ISO code, country name or WORLD.")
    intensity_g_per_kwh: float | None = option(None, "Own grid intensity instead of the zone's.")
    intensity_source: str | None = option(None, "Who says so; required with an own intensity.")
    pue: float = option(1.0, "Power usage effectiveness of the site; enters the grams only.")

    def __post_init__(self) -> None:
        self._require_positive(
            "rank", "alpha", "learning_rate", "epochs", "steps", "tokens", "batch_size",
            "accumulation", "max_length", "eval_every", "patience", "save_every", "budget_wh",
            "max_grad_norm", "threads", "rate_multiplier", "exit_weight", "beta",
            "teacher_weight", "teacher_temperature",
        )  # fmt: skip
        for name in ("dropout", "warmup_share", "validation_share"):
            value = getattr(self, name)
            self._require(0 <= value < 1, name, "must be at least 0 and below 1")
        self._require(self.answers >= 0, "answers", "must not be negative")
        self._require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self._require_place()
        self._require_objective()
        is_timed = self.start == "greenest"
        for name in ("deadline", "intensity_series"):
            given = getattr(self, name) is not None
            self._require(given == is_timed, name, "goes with --start greenest")
        self._require_looks()
        self._require(bool(self.targets), "targets", "must name at least one module")
        self._require(self.steps is None or self.tokens is None, "tokens", "excludes --steps")
        self._require(
            _DEVICE.fullmatch(self.device) is not None,
            "device",
            "must be auto, cpu, cuda or cuda:N",
        )
        self._require(self.pue >= 1, "pue", "must be at least 1")
        own, source = self.intensity_g_per_kwh, self.intensity_source
        self._require(own is None or own >= 0, "intensity_g_per_kwh", "must not be negative")
        if (own is None) != (source is None):
            raise ConfigError(
                "--intensity-g-per-kwh and --intensity-source go together",
                "intensity_g_per_kwh" if source is None else "intensity_source",
            )

    def _require_looks(self) -> None:
        is_scored = self.validation_share > 0 or self.validation is not None
        for name in ("sweep", "eval_every"):
            wanted = getattr(self, name) is not None
            self._require(
                is_scored or not wanted, "validation_share", f"must be above 0 for {flag(name)}"
            )
        has_looks = self.eval_every is not None
        self._require(self.patience is None or has_looks, "patience", "needs --eval-every")
        self._require(
            self.save_every is None or not has_looks,
            "save_every",
            "does not go with --eval-every, whose every look saves a checkpoint",
        )

    def _require_objective(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for objective, names in _OF_OBJECTIVE.items():
            for name in names if objective != self.objective else ():
                is_unset = getattr(self, name) == defaults[name]
                self._require(is_unset, name, f"goes with --objective {objective}")
        self._require(self.teacher_weight <= 1, "teacher_weight", "must not be above 1")
        if self.objective == "distill":
            self._require(self.teacher is not None, "teacher", "is needed for --objective distill")
        if self.objective == "dpo":
            self._require(not self.packing, "packing", "does not go with --objective dpo")
            self._require(not self.dropout, "dropout", "does not go with --objective dpo")
            self._require(
                self.sweep is None,
                "sweep",
                "does not go with --objective dpo: the loss of the better answers alone, by which"
                " trials are ranked, does not say which preference is learnt",
            )

    def _require_place(self) -> None:
        if (self.name is None) == (self.output is None):
            raise ConfigError(
                "give --name, for an adapter that servers find by it, or --output, a folder"
            )
        if self.name is not None:
            self._require(self.is_adapter, "name", "is for adapters; a full model needs --output")
            self._require(
                is_name(self.name), "name", "must be letters, digits and . _ - (no dot first)"
            )

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value > 0, name, "must be greater than 0")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{flag(name)} {rule} (got {getattr(self, name)})", name)

    @property
    def is_adapter(self) -> bool:
        """Whether the base model stays as it is."""
        return self.method != "full"

    @property
    def peak_rate(self) -> float:
        """The learning rate, the method's default where none was given."""
        usual = _ADAPTER_RATE if self.is_adapter else _FULL_RATE
        usual *= _DPO_SHARE if self.objective == "dpo" else 1.0
        rate = usual if self.learning_rate is None else self.learning_rate
        return rate * self.rate_multiplier

    @property
    def scale(self) -> float:
        """Alpha of the adapter."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.output is not None:
            return self.output
        return (self.data_dir or default_data_dir()) / "adapters" / (self.name or "")

    @property
    def is_in_data_dir(self) -> bool:
        """Whether servers find the result by its name."""
        return self.output is None
