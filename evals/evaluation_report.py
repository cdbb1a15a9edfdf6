"""Results of an evaluation as a page and a plot. What is None there is a dash here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.tables import Column, Row, table, text, value


def markdown(found: Mapping[str, Any]) -> str:
    """One row for each task."""
    rows = [{"name": name, **task} for name, task in found["tasks"].items()]
    measured, wh = found["energy"]["measured"], found["basis"]["wh_per_1000_requests"]
    how = {True: "measured", False: "modelled, not measured", None: "unknown"}[measured]
    lines = [
        f"# {found['model']}",
        table(_COLUMNS, rows),
        f"Joules are {how} ({', '.join(found['energy']['methods']) or 'the server says none'}).",
        f"All tasks together: {text(wh)} Wh per 1,000 requests.",
    ]
    lines += [
        f"{row['name']}: {row['refused']} examples were refused and count as wrong, the first"
        f" because: {row['refusals'][0]}"
        for row in rows
        if row["refused"]
    ]
    return "\n\n".join(lines) + "\n"


def _spec(task: Row) -> str:
    return ".1%" if task["measure"] == "accuracy" else ".3f"


def _figure(task: Row) -> str:
    unit = "" if task["measure"] == "accuracy" else " bits per byte"
    return text(task["value"]["value"], _spec(task)) + unit


def _interval(task: Row) -> str:
    low, high = (text(task["value"][end], _spec(task)) for end in ("low", "high"))
    return f"{low} to {high}"


def _per_right(task: Row) -> str | None:
    found = task["joules_per_correct"]
    if found is None:
        return None
    return f"{text(found['value'])} ({text(found['low'])} to {text(found['high'])})"


_COLUMNS: Mapping[str, Column] = {
    "task": value("name"),
    "figure": _figure,
    "95 %": _interval,
    "chance": value("chance", ".1%"),
    "examples": value("value.examples", ".0f"),
    "J": value("energy_j"),
    "J per example": value("joules_per_example"),
    "J per right answer": _per_right,
    "accuracy per J": value("accuracy_per_joule"),
    "J per token": value("joules_per_token"),
    "Wh per 1,000 requests": value("wh_per_1000_requests"),
}


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
