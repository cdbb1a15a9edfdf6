"""The speculation benchmark as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
APPROXIMATE = "approximate"
_HEAD = (
    "| work | batch | method | tok/s | x off | mJ/token (active) | x off | accepted of guesses"
    " | tokens/step | answers that differ |"
)


def markdown(result: Mapping[str, Any]) -> str:
    """One row for each kind of work, batch size and method; ratios are medians of paired ones.

    Approximate answers make no guesses, so their tokens per step say nothing.
    """
    rows = [_HEAD, "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    for kind, batches in result["kinds"].items():
        for batch, methods in batches.items():
            rows += [_row(kind, batch, method, cell) for method, cell in methods.items()]
    return "\n".join(rows) + "\n"


def _row(kind: str, batch: str, method: str, cell: Mapping[str, Any]) -> str:
    acceptance = cell["acceptance"]
    values = (
        *(kind, batch, method),
        f"{cell['tokens_per_s']:,.0f}",
        f"{cell['speed_over_off']['median']:.2f}",
        f"{1e3 * cell['active_joules_per_token']:.3f}",
        f"{cell['joules_over_off']['median']:.2f}",
        "" if acceptance is None else f"{acceptance:.0%}",
        "" if method == APPROXIMATE else f"{cell['tokens_per_step']:.2f}",
        f"{cell['answers_that_differ']} of {cell['answers']}",
    )
    return f"| {' | '.join(values)} |"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Speed and joules per token over plain decoding, by batch size; one panel each per kind."""
    from matplotlib.figure import Figure

    kinds = result["kinds"]
    figure = Figure(figsize=(4.2 * len(kinds), 6), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False)
    for column, (kind, batches) in enumerate(kinds.items()):
        for row, name in enumerate(("speed_over_off", "joules_over_off")):
            _panel(axes[row][column], batches, name)
            axes[row][column].set_title(f"{kind}: {name.replace('_', ' ')}")
    axes[0][0].legend()
    figure.suptitle(f"Guessing, {result['model']} (modelled joules)")
    figure.savefig(path)


def _panel(axes: Any, batches: Mapping[str, Any], name: str) -> None:
    sizes = [int(size) for size in batches]
    for method in next(iter(batches.values())):
        cells = [batches[str(size)][method][name] for size in sizes]
        medians = [cell["median"] for cell in cells]
        low = [cell["median"] - cell["q1"] for cell in cells]
        high = [cell["q3"] - cell["median"] for cell in cells]
        axes.errorbar(sizes, medians, [low, high], marker="o", capsize=2, label=method)
    axes.set(xscale="log", xlabel="requests in the batch")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.grid(visible=True, alpha=0.3)
