"""Results of an evaluation as a page and a plot. What is None there is a dash here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NONE = "-"
_HEAD = (
    "| task | figure | 95 % | chance | examples | J | J per example | J per right answer"
    " | accuracy per J | J per token | Wh per 1,000 requests |"
)


def markdown(found: Mapping[str, Any]) -> str:
    """One row for each task."""
    rows = [_HEAD, "|---|---:|---|---:|---:|---:|---:|---|---:|---:|---:|"]
    rows += [_row(name, task) for name, task in found["tasks"].items()]
    measured = found["energy"]["measured"]
    how = {True: "measured", False: "modelled, not measured", None: "unknown"}[measured]
    lines = [
        f"# {found['model']}",
        "\n".join(rows),
        f"Joules are {how} ({', '.join(found['energy']['methods']) or 'the server says none'}).",
        f"All tasks together: {_short(found['basis']['wh_per_1000_requests'])} Wh per 1,000"
        " requests.",
    ]
    refused = {name: task for name, task in found["tasks"].items() if task["refused"]}
    lines += [
        f"{name}: {task['refused']} examples were refused and count as wrong, the first because:"
        f" {task['refusals'][0]}"
        for name, task in refused.items()
    ]
    return "\n\n".join(lines) + "\n"


def _row(name: str, task: Mapping[str, Any]) -> str:
    value, is_accuracy = task["value"], task["measure"] == "accuracy"
    per_right = task["joules_per_correct"]
    show = _percent if is_accuracy else _bits
    cells = (
        name,
        show(value["value"]) + ("" if is_accuracy else " bits per byte"),
        f"{show(value['low'])} to {show(value['high'])}",
        _NONE if task["chance"] is None else _percent(task["chance"]),
        str(value["examples"]),
        _short(task["energy_j"]),
        _short(task["joules_per_example"]),
        _NONE if per_right is None else _interval(per_right),
        _short(task["accuracy_per_joule"]),
        _short(task["joules_per_token"]),
        _short(task["wh_per_1000_requests"]),
    )
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _bits(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _short(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}"


def _interval(found: Mapping[str, float | None]) -> str:
    return f"{_short(found['value'])} ({_short(found['low'])} to {_short(found['high'])})"


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
