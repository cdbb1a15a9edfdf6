"""Loss against joules, the picture of a run. Not covered: comparing runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Training and validation loss over steps, and joules by phase beside them."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "greenllm"
    from matplotlib import pyplot

    training, energy = found["training"], found["measures"]["energy"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    curves = (("losses", "training", "-"), ("validation_losses", "validation", "o-"))
    for name, label, style in curves:
        if points := training[name]:
            left.plot(*zip(*points, strict=True), style, label=label, linewidth=1)
            left.legend()
    left.set(xlabel="step", ylabel="loss, nats per token")
    phases = {phase: spent["total_j"] for phase, spent in energy["by_phase"].items() if spent}
    right.barh(list(phases), list(phases.values()))
    right.invert_yaxis()
    right.set(xlabel=f"joules ({energy['method']})")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
