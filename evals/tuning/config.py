"""Options of `greenllm tune`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.tuning.space import DEFAULT
from greenllm.config import ConfigError, Options, option
from greenllm.options import MeterOptions, ModelOptions


@dataclass(frozen=True, kw_only=True)
class TuneConfig(ModelOptions, MeterOptions):
    """What is searched, by what, and what a setting has to keep."""

    panel = Options.panel

    space: str = option(DEFAULT, "Options of greenllm serve and the values to try.")
    tasks: str = option(
        "generated.sql,generated.edit,generated.count,generated.json",
        "Tasks that settings are measured on, as for greenllm eval; they must have accuracies.",
    )
    concurrency: int = option(4, "Requests in flight.")
    few: int = option(32, "Examples of the first measurement of a setting.")
    many: int = option(256, "Examples of the last measurement.")
    slowest_s: float | None = option(None, "95 % of the requests must be answered within this.")
    quality_floor: float | None = option(
        None, "Least accuracy; default is --quality-share of the first setting's."
    )
    quality_share: float = option(0.98, "Share of the first setting's accuracy to keep.")
    budget_wh: float | None = option(None, "Watt-hours the search may cost.")
    exhaustive: bool = option(False, "Measure every setting on all examples instead.")
    draft_model: str | None = option(None, "Draft model of every server, as for greenllm serve.")
    servers: int = option(3, "Servers that run at once and take turns, if memory allows.")
    seed: int = option(7, "Seed of generated tasks.")
    output: Path = option(Path("tuned"), "Folder for serve.toml, the trials, a page and a plot.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("concurrency", "few", "many", "slowest_s", "budget_wh", "servers")
        if self.exhaustive and self.budget_wh is not None:
            raise ConfigError(
                "--budget-wh does not go with --exhaustive, which measures everything", "budget_wh"
            )
        if self.many < self.few:
            raise ConfigError(f"--many {self.many} must be at least --few {self.few}", "many")
        for name in ("quality_floor", "quality_share"):
            value = getattr(self, name)
            self.require(value is None or 0 <= value <= 1, name, "must be in [0, 1]")
