"""Results of an evaluation as a page and a plot. What is None there is a dash here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.pages import page


def markdown(found: Mapping[str, Any]) -> str:
    """One row for each task."""
    return page(Path(__file__).with_name("evaluation.md.jinja"), **found)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy of each task, with its interval, over the joules of one example."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, task in found["tasks"].items():
        joules, value = task["joules_per_example"], task["value"]
        if task["measure"] != "accuracy" or joules is None:
            continue
        reach = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
        axes.errorbar([joules], [value["value"]], yerr=reach, fmt="o", capsize=3)
        axes.annotate(name, (joules, value["value"]), xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="joules per example", ylabel="accuracy", ylim=(-0.05, 1.08), xscale="log")
    axes.set_title(f"{found['model']}: quality against joules")
    figure.savefig(path)
