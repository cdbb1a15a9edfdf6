"""Options of `greenllm profile`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.config import Options, option
from greenllm.options import MeterOptions, ModelOptions, ThreadOptions

StepKind = Literal["decode", "prefill"]


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(ModelOptions, ThreadOptions, MeterOptions):
    """Which step of which model is looked at, and how often."""

    panel = Options.panel

    phase: StepKind = option(
        "decode",
        "decode: one token of each sequence after its prompt; prefill: the prompts themselves.",
    )
    batch: int = option(1, "Sequences in the step.")
    prompt_tokens: int = option(64, "Tokens of each prompt: the context of decode.")
    rounds: int = option(20, "Timed steps; the middle half of them counts.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto, float32, bfloat16 or float16; auto is bfloat16 on GPUs, float32 on CPUs."
    )
    quantize: Literal["none", "int8", "nf4"] = option(
        "none", "none, int8 or nf4: quantize the weights while loading, by bitsandbytes."
    )
    each_layer: bool = option(False, "A row for every layer instead of their mean.")
    output: Path | None = option(None, "Folder for profile.json, profile.md and profile.svg.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("batch", "prompt_tokens", "rounds")

    @property
    def context(self) -> int:
        """Tokens of each sequence after the step."""
        return self.prompt_tokens + (1 if self.phase == "decode" else 0)
