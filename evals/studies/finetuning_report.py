"""The fine-tuning benchmark as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from evals.studies.ratios import spread_of

mpl.use("Agg")
_HEAD = (
    "| method | trained | MB | training J | x first ({}) | bill J | validation loss"
    " | exact | probe loss | predicted / actual |"
)


def markdown(result: Mapping[str, Any]) -> str:
    """One row for each method."""
    rows = [
        _HEAD.format(spread_of(result["seeds"])),
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    rows += [_row(method, found) for method, found in result["methods"].items()]
    return "\n".join(rows) + "\n"


def _row(method: str, found: Mapping[str, Any]) -> str:
    ratio, exact = found["joules_over_first"], found["exact_match"]
    predicted = found["prediction_ratio"]
    values = (
        method,
        f"{found['trained_parameters']:,.0f}",
        f"{found['output_mb']:.1f}",
        f"{found['training_j']:.1f}",
        f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})",
        f"{found['total_j']:.1f}",
        f"{found['validation_loss']:.3f}",
        "" if exact is None else f"{exact:.0%}",
        f"{found['probe_loss_change']:+.3f}",
        "" if predicted is None else f"{predicted:.2f}",
    )
    return f"| {' | '.join(values)} |"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Quality against the joules of training, every run a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, found in result["methods"].items():
        runs = found["runs"]
        joules = [run["training_j"] for run in runs]
        left.plot(joules, [run["validation_loss"] for run in runs], "o", label=method)
        if found["exact_match"] is not None:
            right.plot(joules, [run["exact_match"] for run in runs], "o", label=method)
    left.set(xlabel="joules of training (modelled)", ylabel="validation loss")
    right.set(xlabel="joules of training (modelled)", ylabel="exact matches", ylim=(-0.05, 1.05))
    left.legend()
    figure.suptitle(f"Fine-tuning the bundled model on {result['data']}")
    figure.savefig(path)
