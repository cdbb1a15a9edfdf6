"""Options of `greenllm compress`, each declared once.

Contract: a config that exists is consistent in itself; what depends on the model is refused later,
by name. Not covered: the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
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

Method = Literal["prune", "student", "svd", "sparsity"]
GENERATED = "generated"
# What each method is told, and of what it needs at least one.
_SIZES: Mapping[Method, tuple[str, ...]] = {
    "prune": ("layers", "heads", "mlp_width"),
    "student": ("layers", "heads", "mlp_width", "hidden_size"),
    "svd": ("rank_share",),
    "sparsity": ("zeros",),
}


@dataclass(frozen=True, kw_only=True)
class CompressConfig(ModelOptions, DeviceOptions, ThreadOptions, MeterOptions, CarbonOptions):
    """What is made smaller, how, and what it is judged by."""

    panel = Options.panel

    output: Path | None = option(None, "Folder to write: the smaller model, its card and report.")
    data: str = option(
        GENERATED,
        "Examples to find what matters by, and to heal with: a JSONL file as for greenllm finetune,"
        " or 'generated', the kinds the bundled model was trained on.",
    )
    examples: int = option(4000, "Examples of 'generated'.")
    method: Method = option(
        "prune",
        "prune: leave out the layers, heads and MLP channels that matter least; student: a fresh,"
        " smaller model that learns from this one; svd: factorize, to see whether that saves"
        " anything; sparsity: zero the smallest weights, to see the same.",
    )
    layers: int | None = option(None, "Layers to keep.")
    heads: int | None = option(None, "Query heads to keep in every layer.")
    mlp_width: int | None = option(None, "Channels to keep in every MLP.")
    hidden_size: int | None = option(None, "Width of a student.")
    rank_share: float | None = option(
        None, "Share of each matrix' parameters that its two factors may have (svd)."
    )
    zeros: float | None = option(None, "Share of each matrix' weights to set to zero (sparsity).")
    heal: Literal["auto", "lora", "full", "none"] = option(
        "auto",
        "auto, lora, full or none: how what is left learns from the model as it was; auto is lora"
        " after pruning and full for a student.",
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
        0.95, "Share of the quality before that a green compression keeps at least."
    )
    seed: int = option(7, "Seed of everything random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise ConfigError("--output is needed: a folder for what is made", "output")
        self._require_sizes()
        self.require_above_zero(
            "examples", "steps", "batch_size", "rank", "limit", "rounds", "concurrency",
            "layers", "heads", "mlp_width", "hidden_size",
        )  # fmt: skip
        for name in ("rank_share", "zeros"):
            value = getattr(self, name)
            within = value is None or 0 < value < 1
            self.require(within, name, "must be above 0 and below 1")
        within = 0 < self.quality_share < 1.01
        self.require(within, "quality_share", "must be above 0 and at most 1")
        self._require_used()
        allowed = {"student": ("auto", "full"), "prune": ("auto", "lora", "full", "none")}
        if self.heal not in allowed.get(self.method, ("auto", "none")):
            raise ConfigError(f"--heal {self.heal} does not go with --method {self.method}", "heal")

    def _require_sizes(self) -> None:
        own = _SIZES[self.method]
        names = {name for sizes in _SIZES.values() for name in sizes}
        for name in sorted(names - set(own)):
            if getattr(self, name) is not None:
                raise ConfigError(f"{flag(name)} does not go with --method {self.method}", name)
        if all(getattr(self, name) is None for name in own):
            wanted = ", ".join(map(flag, own))
            raise ConfigError(f"--method {self.method} needs one of {wanted}")

    def _require_used(self) -> None:
        """Nothing is accepted that would be ignored."""
        scored = ("tasks", "limit", "serve", "concurrency")
        healed = ("steps", "rank", "learning_rate", "batch_size")
        unused = {
            "does not go with --method svd": scored if self.method == "svd" else (),
            "goes with healing": () if self.healing else healed,
        }
        defaults = {field.name: field.default for field in fields(self)}
        for rule, names in unused.items():
            for name in names:
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{flag(name)} {rule}", name)

    @property
    def healing(self) -> Literal["lora", "full"] | None:
        """How it is healed, if at all."""
        if self.heal == "auto":
            usual: Mapping[Method, Literal["lora", "full"]] = {"prune": "lora", "student": "full"}
            return usual.get(self.method)
        return None if self.heal == "none" else self.heal

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.output is None:
            raise ValueError("checked when it was made")
        return self.output
