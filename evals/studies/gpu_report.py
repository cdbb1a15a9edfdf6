"""The table of `evals.studies.gpu`, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = (
    "| weights | batch | tok/s | board W | mJ/token, board | x the first (quartiles)"
    " | mJ/token, processor | mJ/token, active | receipts / counter |"
)


def markdown(result: Mapping[str, Any]) -> str:
    """A row for every precision and batch size."""
    lines = [_HEAD, "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for arm, cells in result["arms"].items():
        for batch, cell in cells.items():
            ratio = cell["gpu_joules_over_first"]
            values = (
                *(arm, batch),
                f"{cell['tokens_per_s']:,.0f}",
                f"{cell['board_w']:.0f}",
                f"{1e3 * cell['gpu_joules_per_token']:.3g}",
                f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})",
                f"{1e3 * cell['cpu_joules_per_token']:.3g}",
                f"{1e3 * cell['active_joules_per_token']:.3g}",
                f"{cell['receipts_over_counter']['median']:.3f}",
            )
            lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"
