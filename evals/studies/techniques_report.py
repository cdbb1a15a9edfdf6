"""Precision, guessing and batch size as a table and a plot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from evals.studies.ratios import spread_of

mpl.use("Agg")
_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_HEAD = (
    "| weights | guessing | batch | mJ/token | x plain ({}) | tok/s | p50 s | p95 s"
    " | right answers |"
)


def rows_of(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Every cell with its names, batch by batch."""
    precisions = result["precisions"]
    first = next(iter(next(iter(precisions.values())).values()))
    for batch in first:
        for precision, ways in precisions.items():
            for way, cells in ways.items():
                yield precision, way, batch, cells[batch]


def markdown(result: Mapping[str, Any]) -> str:
    """One row for each cell; ratios are medians of those of each round."""
    lines = [
        _HEAD.format(spread_of(result["rounds"])),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for precision, way, batch, cell in rows_of(result):
        ratio, quality = cell["joules_over_plain"], cell["quality"]
        values = (
            *(precision, way, batch),
            f"{1e3 * cell['joules_per_token']:.3f}",
            f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})",
            f"{cell['tokens_per_s']:,.0f}",
            f"{cell['p50_s']:.3f}",
            f"{cell['p95_s']:.3f}",
            "-" if quality is None else f"{quality['value']:.1%}",
        )
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Joules per token by batch size, a line for each precision and way of guessing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for colour, (precision, ways) in enumerate(result["precisions"].items()):
        for style, (way, cells) in zip(itertools.cycle(_STYLES), ways.items(), strict=False):
            sizes = [int(size) for size in cells]
            values = [1e3 * cell["joules_per_token"] for cell in cells.values()]
            axes.plot(sizes, values, style, color=f"C{colour}", marker="o",
                      label=f"{precision}, {way}")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="mJ per token")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    axes.set_title(f"{result['model']} ({', '.join(result['energy']['methods'])})")
    figure.savefig(path)
