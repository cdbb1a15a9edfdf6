"""The card as CSV: a row for each figure of quality, the run's six measures beside it.

Contract: pure; full precision; unknown is an empty cell. The measures are the whole run's and are
the same in every row, so that they must not be added up; `own_` columns are the figure's task's. A
run without a figure has one row.

Not covered: energy by phase, notes, versions: JSON has them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any

from greenllm.scorecard.card import Card, Quality


def csv_table(card: Card) -> str:
    """Head and rows."""
    run = _run(card)
    rows = [{**run, **_row(card, one)} for one in card.quality or (None,)]
    file = StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _run(card: Card) -> dict[str, Any]:
    identity, energy, carbon = card.identity, card.energy, card.carbon
    return {
        "what": identity.what,
        "model": identity.model,
        "method": identity.method,
        "began": identity.began,
        "machine": identity.machine,
        "running_time_s": card.running_time_s,
        "parameters": card.model.parameters,
        "written_bytes": card.model.written_bytes,
        "flops": card.flops.value,
        "power_w": card.power_w,
        "energy_j": energy.total_j,
        "tokens_are": energy.tokens_are,
        "joules_per_token": energy.joules_per_token,
        "wh_per_1000_requests": energy.wh_per_1000_requests,
        "energy_method": energy.method,
        "measured": energy.measured,
        "uncertainty": energy.uncertainty,
        "operational_g": carbon.operational_g,
        "embodied_g": carbon.embodied_g,
        "total_g": carbon.total_g,
        "intensity_g_per_kwh": carbon.intensity_g_per_kwh,
        "intensity_zone": carbon.intensity_zone,
        "intensity_source": carbon.intensity_source,
        "intensity_year": carbon.intensity_year,
        "pue": carbon.pue,
    }


def _row(card: Card, one: Quality | None) -> Mapping[str, Any]:
    """A figure; all cells are empty where there is none."""
    own = next((part for part in card.energy.parts if one and part.name == one.name), None)
    before = one.before if one else None
    return {
        "quality": one and one.name,
        "measure": one and one.measure,
        "data": one and one.data,
        "value": one and one.value,
        "low": one and one.low,
        "high": one and one.high,
        "examples": one and one.examples,
        "chance": one and one.chance,
        "before": before and before.value,
        "own_energy_j": own and own.energy_j,
        "own_wh_per_1000_requests": own and own.wh_per_1000_requests,
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
