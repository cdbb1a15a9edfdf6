"""The card as CSV: a row for each figure of quality, the run's six measures beside it.

Contract: pure; full precision; unknown is an empty cell. The measures are the whole run's and are
the same in every row, so that they must not be added up; `own_` columns are the figure's task's. A
run without a figure has one row.

Not covered: energy by phase, notes, versions: JSON has them.
"""

from __future__ import annotations

import csv
from dataclasses import fields
from io import StringIO
from operator import attrgetter
from typing import Any

from greenllm.scorecard.card import Carbon, Card, Quality

# Columns by their place in the card.
_RUN = {
    **{n: f"identity.{n}" for n in ("what", "model", "method", "began", "machine")},
    "running_time_s": "running_time_s",
    **{n: f"model.{n}" for n in ("parameters", "written_bytes")},
    "flops": "flops.value",
    "power_w": "power_w",
    "energy_j": "energy.total_j",
    **{n: f"energy.{n}" for n in ("tokens_are", "joules_per_token", "wh_per_1000_requests")},
    "energy_method": "energy.method",
    **{n: f"energy.{n}" for n in ("measured", "uncertainty")},
    **{spec.name: f"carbon.{spec.name}" for spec in fields(Carbon)},
}
_FIGURE = ("measure", "data", "value", "low", "high", "examples", "chance")


def csv_table(card: Card) -> str:
    """Head and rows."""
    run = {name: attrgetter(place)(card) for name, place in _RUN.items()}
    rows = [{**run, **_row(card, one)} for one in card.quality or (None,)]
    file = StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _row(card: Card, one: Quality | None) -> dict[str, Any]:
    """A figure; all cells are empty where there is none."""
    own = next((part for part in card.energy.parts if one and part.name == one.name), None)
    return {
        "quality": one and one.name,
        **{name: getattr(one, name, None) for name in _FIGURE},
        "before": one and one.before and one.before.value,
        "own_energy_j": own and own.energy_j,
        "own_wh_per_1000_requests": own and own.wh_per_1000_requests,
    }


def _cell(value: Any) -> Any:
    """JSON's words for truth; the csv module leaves None empty."""
    return str(value).lower() if isinstance(value, bool) else value
