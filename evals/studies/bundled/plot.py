"""The training curve as a small picture.

Contract: the same rows give the same bytes. Not covered: anything but the columns that checks
write: losses to the left, agreement to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

LOSSES: Final = {"loss": "training (smoothed)", "held_out_loss": "held out"}
SALT: Final = "greenllm"


def agreement_label(column: str) -> str:
    """What an agreement column shows."""
    name = column.removeprefix("agree_")
    return f"exit after layer {name}" if name.isdigit() else "draft with the model"


def draw_curve(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Loss and agreement over millions of tokens, as SVG."""
    with pyplot.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 8}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 2.7), layout="constrained")
        millions = [row["tokens"] / 1e6 for row in rows]
        for column, label in LOSSES.items():
            left.plot(millions, [row[column] for row in rows], label=label)
        for column in (name for name in rows[0] if name.startswith("agree_")):
            right.plot(millions, [100 * row[column] for row in rows], label=agreement_label(column))
        left.set(xlabel="million tokens", ylabel="loss, nats per token", ylim=(0, None))
        right.set(xlabel="million tokens", ylabel="same likeliest token, %", ylim=(0, 100))
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
