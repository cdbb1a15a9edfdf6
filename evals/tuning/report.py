"""What a search has found: a page, a plot of the front, and the options to serve with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.pages import page
from evals.tuning.search import Trial, front, last_of


def as_dict(
    model: str, best: Trial, first: Trial | None, trials: Sequence[Trial], stopped_by: str | None
) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "model": model,
        "chosen": _plain(best),
        "first": None if first is None else _plain(first),
        "spent_j": sum(trial.spent_j for trial in trials),
        "stopped_by": stopped_by,
        "trials": [_plain(trial) for trial in trials],
        "front": [str(trial.setting) for trial in front(last_of(trials))],
    }


def _plain(trial: Trial) -> dict[str, Any]:
    found = asdict(trial)
    found["setting"] = dict(trial.setting.values)
    found["quality"] = trial.quality.as_dict()
    if trial.error is not None:
        found["joules_per_token"] = found["p95_s"] = None
    return found


def toml(model: str, best: Trial, draft_model: str | None) -> str:
    """Options for `greenllm serve --config`."""
    values = {"model": model, **dict(best.setting.values)}
    if draft_model is not None:
        values["draft_model"] = draft_model
    head = (
        f"# {best.joules_per_token * 1e3:.3f} mJ per token, accuracy {best.quality.value:.3f},"
        f" p95 {best.p95_s:.2f} s on {best.num_examples} examples"
    )
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([head, *lines]) + "\n"


def markdown(found: Mapping[str, Any]) -> str:
    """The chosen setting, and every trial."""
    return page(Path(__file__).with_name("report.md.jinja"), **found)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Quality over joules per token, latency as colour; the chosen setting is ringed."""
    from matplotlib.figure import Figure

    trials = [trial for trial in found["trials"] if trial["error"] is None]
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    joules = [trial["joules_per_token"] * 1e3 for trial in trials]
    quality = [trial["quality"]["value"] for trial in trials]
    sizes = [10 + trial["num_examples"] / 4 for trial in trials]
    dots = axes.scatter(joules, quality, s=sizes, c=[trial["p95_s"] for trial in trials])
    figure.colorbar(dots, label="p95, s")
    chosen = found["chosen"]
    label = ", ".join(f"{name} {value}" for name, value in chosen["setting"].items())
    axes.scatter(
        [chosen["joules_per_token"] * 1e3], [chosen["quality"]["value"]], s=200,
        facecolors="none", edgecolors="black", label=label,
    )  # fmt: skip
    axes.set(xlabel="mJ per token", ylabel="accuracy", title=f"{found['model']}: settings tried")
    axes.legend()
    figure.savefig(path)
