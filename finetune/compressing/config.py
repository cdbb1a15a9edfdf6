"""Options of `greenllm compress`, each declared once.

Contract: a config that exists is consistent in itself; what depends on the model is refused later,
by name. Not covered: the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from greenllm.config import ConfigError, Options, flag, option
from greenllm.options import (
    CarbonOptions,
    DeviceOptions,
    MeterOptions,
    ModelOptions,
    ThreadOptions,
)

Method = Literal["prune", "student"]
GENERATED = "generated"
_SIZES = ("layers", "heads", "mlp_width", "hidden_size")
_HEALING = ("steps", "rank", "learning_rate", "batch_size")


@dataclass(frozen=True, kw_only=True)
class CompressConfig(ModelOptions, DeviceOptions, ThreadOptions, MeterOptions, CarbonOptions):
    """What is made smaller, how, and what it is judged by."""

    panel = Options.panel

    output: Path | None = option(None, "Folder to write: the smaller model, its card and report.")
    data: str = option(
        GENERATED,
        "Examples to measure importance and to heal with: a JSONL file as for greenllm"
        " finetune, or 'generated', the kinds that the bundled model was trained on.",
    )
    examples: int = option(4000, "Examples of 'generated'.")
    method: Method = option(
        "prune",
        "prune: leave out the layers, heads and MLP channels that matter least; student: a fresh,"
        " smaller model that learns from this one.",
    )
    layers: int | None = option(None, "Layers to keep.")
    heads: int | None = option(None, "Query heads to keep in every layer.")
    mlp_width: int | None = option(None, "Channels to keep in every MLP.")
    hidden_size: int | None = option(None, "Width of a student.")
    heal: Literal["auto", "lora", "full", "none"] = option(
        "auto",
        "auto, lora, full or none: how the smaller model learns from the original; auto is"
        " lora after pruning and full for a student.",
    )
    steps: int = option(300, "Steps of healing, or of a student's training.")
    batch_size: int = option(16, "Examples in a step.")
    learning_rate: float | None = option(None, "Peak rate; default as for greenllm finetune.")
    rank: int = option(16, "Rank of the adapter that heals; it is merged.")
    tasks: str = option(GENERATED, "Tasks to score on, before and after, as for greenllm eval.")
    limit: int = option(20, "Examples of each task.")
    rounds: int = option(3, "Times that both models are scored, in turns.")
    concurrency: int = option(8, "Examples in flight.")
    serve: str = option(
        "", "More options for the servers that score, which get --threads: as for greenllm serve."
    )
    quality_share: float = option(
        0.95, "Least share of the original quality that a green compression keeps."
    )
    seed: int = option(7, "Seed of everything random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise ConfigError("--output is needed: a folder for what is made", "output")
        self.require_above_zero(
            *_SIZES, "examples", "steps", "batch_size", "rank", "limit", "rounds", "concurrency"
        )
        within = 0 < self.quality_share <= 1
        self.require(within, "quality_share", "must be above 0 and at most 1")
        sizes = _SIZES[: 3 if self.method == "prune" else 4]
        if self.method == "prune" and self.hidden_size is not None:
            raise ConfigError("--hidden-size does not go with --method prune", "hidden_size")
        if all(getattr(self, name) is None for name in sizes):
            raise ConfigError(f"--method {self.method} needs one of {', '.join(map(flag, sizes))}")
        if self.method == "student" and self.heal not in ("auto", "full"):
            raise ConfigError(f"--heal {self.heal} does not go with --method student", "heal")
        self._require_used()

    def _require_used(self) -> None:
        """Nothing is accepted that would be ignored."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in () if self.healing else _HEALING:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"{flag(name)} goes with healing", name)

    @property
    def healing(self) -> Literal["lora", "full"] | None:
        """How it is healed, if at all."""
        if self.heal == "auto":
            return "lora" if self.method == "prune" else "full"
        return None if self.heal == "none" else self.heal

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.output is None:
            raise ValueError("checked when it was made")
        return self.output
