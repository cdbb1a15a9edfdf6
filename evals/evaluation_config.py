"""Options of `greenllm eval`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from greenllm.config import ConfigError, Options, option
from greenllm.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ModelOptions):
    """What is asked of whom."""

    panel = Options.panel

    tasks: str | None = option(
        None,
        "Tasks, comma-separated: generated, generated.NAME, FILE.py, or one of perplexity, pairs,"
        " choice, exact, json, sql, number with :FILE.",
    )
    serve: str = option(
        "", "Options for the server of the model, as for greenllm serve, in one text."
    )
    url: str | None = option(None, "Ask this running server instead.")
    ask_for: str | None = option(
        None, "Model or adapter to ask for; default is the first that the server lists."
    )
    api_key: str | None = option(None, "Sent as bearer token.")
    limit: int | None = option(None, "Examples of each task; default is all, 100 of generated.")
    shots: int = option(
        0, "Examples, the first of each file, to show with their answers before each question."
    )
    concurrency: int = option(16, "Examples in flight.")
    seed: int = option(7, "Seed of generated tasks.")
    timeout_s: float = option(600.0, "Longest wait for an answer.")
    output: Path | None = option(None, "Folder for the results: JSON, a page and a plot.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("limit", "concurrency", "timeout_s")
        self.require(self.shots >= 0, "shots", "must not be negative")
        if self.url is not None and self.serve:
            text = "--serve is for a server of this command's own, not for --url"
            raise ConfigError(text, "serve")
