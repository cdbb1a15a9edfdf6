"""What `greenllm report` writes to files: receipts as CSV, sums as JSON, a plot.

Contract: full precision; unknown is an empty cell, null, or no bar. A file that cannot be written
is a `GreenllmError` that names it. Not covered: appending to files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from greenllm.cli.report_data import FOREVER_S, Period, Report, SessionAccount
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.ledger import GroupSums, Ledger
from greenllm.energy.receipt import Receipt
from greenllm.energy.units import joules_to_kwh
from greenllm.figures import UNKNOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".png", ".svg")
COLUMNS = (
    *(spec.name for spec in fields(Receipt)),
    "total_j",
    "joules_per_token",
    "avg_power_w",
    "gco2e",
)
MAX_BARS = 60
_MAX_LABEL = 40
_BAR = 0.6
_ACTIVE_COLOUR, _IDLE_COLOUR, _RATIO_COLOUR = "#2a7f4f", "#b5d6c2", "#3b5b92"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into one line."""
    try:
        yield
    except OSError as error:
        raise GreenllmError(f"cannot write {path}: {error.strerror or error}") from error


def write_csv(path: Path, ledger: Ledger, period: Period) -> None:
    """Write every receipt of a period; a bar on standard error says how far it is."""
    errors = Console(stderr=True)
    parts = track(
        slices(ledger, period), "receipts", console=errors, transient=True,
        disable=not errors.is_terminal,
    )  # fmt: skip
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for part in parts:
            receipts = ledger.receipts(since_s=part.since_s, until_s=part.until_s)
            writer.writerows(map(_cells, receipts))


def slices(ledger: Ledger, period: Period) -> list[Period]:
    """A period in parts that end at full hours with requests: memory holds one at a time."""
    hours = ledger.sums("hour", since_s=period.since_s, until_s=period.until_s)
    starts = [datetime.fromisoformat(row.group).timestamp() for row in hours if row.group]
    inside = [at_s for at_s in starts if period.since_s < at_s < period.until_s]
    return [Period(*pair) for pair in pairwise([period.since_s, *inside, period.until_s])]


def _cells(receipt: Receipt) -> list[Any]:
    values = {name: getattr(receipt, name) for name in COLUMNS}
    for name in ("domains_j", "metadata"):
        values[name] = json.dumps(dict(getattr(receipt, name)))
    return list(values.values())


def write_json(path: Path, report: Report) -> None:
    """Write sums, measures and sessions; names as in `GET /v1/energy`."""
    text = json.dumps(report_object(report), indent=2, ensure_ascii=False) + "\n"
    with writing(path):
        path.write_text(text, encoding="utf-8")


def report_object(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "object": "energy.report",
        "since": report.period.since_s or None,
        "until": None if report.period.until_s == FOREVER_S else report.period.until_s,
        "group_by": report.group_by,
        "data": [{"group": sums.group, **_sums(sums)} for sums in report.groups],
        "total": _sums(report.total),
        "measures": _measures(report),
        "sessions": [_session(account) for account in report.accounts],
    }


def _sums(sums: GroupSums) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "drafted_tokens": sums.drafted_tokens,
        "accepted_tokens": sums.accepted_tokens,
        "active_joules": sums.active_j,
        "draft_joules": sums.draft_j,
        "idle_joules": sums.idle_j,
        "energy_joules": sums.total_j,
        "joules_per_token": sums.joules_per_token,
        "gco2e": sums.gco2e,
        "unmetered_requests": sums.unmetered,
        "refused_requests": sums.refused,
    }


def _measures(report: Report) -> dict[str, float | None]:
    total = report.total
    return {
        "running_time_seconds": total.running_s,
        "model_parameters": report.parameters,
        "flops": total.flops,
        "avg_power_watts": total.avg_power_w,
        "energy_joules": total.total_j,
        "energy_kwh": None if total.total_j is None else joules_to_kwh(total.total_j),
        "gco2e": total.gco2e,
    }


def _session(account: SessionAccount) -> dict[str, Any]:
    session, totals = account.session, account.session.totals
    return {
        "session_id": session.session_id,
        "started": session.started_s,
        "updated": session.updated_s,
        "closed": session.closed,
        "method": session.method,
        "measured": session.measured,
        "model_parameters": session.parameters,
        **totals.told(),
        "residual": totals.residual,
        "receipt_joules": account.receipts_j,
        "adds_up": account.adds_up,
    }


def check_plot(path: Path | None) -> None:
    """Refuse a format that is not offered.

    Raises:
        ConfigError: the file ends in something else.
    """
    if path is not None and path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"--plot must end in {' or '.join(PLOT_SUFFIXES)}, not {str(path)!r}")


def write_plot(path: Path, report: Report) -> None:
    """Draw joules per group, active and idle apart, beside joules per token."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, heading = _shown(report)
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    energy, ratio = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    _draw_energy(energy, shown)
    _draw_ratio(ratio, shown)
    for axes in (energy, ratio):
        axes.locator_params(axis="x", nbins=5)
    energy.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    figure.suptitle(heading, x=0.01, ha="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    with writing(path):
        figure.savefig(path, dpi=150)


def _shown(report: Report) -> tuple[list[GroupSums], str]:
    """The groups there is room for, in their own order, and a heading that says what is not."""
    heading = f"Energy by {report.group_by}"
    left_out = len(report.groups) - MAX_BARS
    if left_out <= 0:
        return list(report.groups), heading
    if report.group_by == "hour":
        return list(report.groups[-MAX_BARS:]), f"{heading} (without {left_out} earlier ones)"
    by_energy = sorted(report.groups, key=lambda sums: sums.total_j or 0.0, reverse=True)
    kept = {sums.group for sums in by_energy[:MAX_BARS]}
    shown = [sums for sums in report.groups if sums.group in kept]
    return shown, f"{heading} (without {left_out} smaller ones)"


def _draw_energy(axes: Axes, shown: list[GroupSums]) -> None:
    places = range(len(shown))
    active = [sums.active_j or 0.0 for sums in shown]
    idle = [sums.idle_j or 0.0 for sums in shown]
    axes.barh(places, active, _BAR, color=_ACTIVE_COLOUR, label="active")
    axes.barh(places, idle, _BAR, left=active, color=_IDLE_COLOUR, label="idle share")
    axes.set_yticks(places, labels=[_label(sums) for sums in shown], parse_math=False)
    axes.set_xlabel("joules")
    _mark_unknown(axes, [sums.total_j for sums in shown])


def _draw_ratio(axes: Axes, shown: list[GroupSums]) -> None:
    values = [sums.joules_per_token for sums in shown]
    axes.barh(range(len(shown)), [value or 0.0 for value in values], _BAR, color=_RATIO_COLOUR)
    axes.set_xlabel("joules per completion token")
    _mark_unknown(axes, values)


def _mark_unknown(axes: Axes, values: list[float | None]) -> None:
    for place, value in enumerate(values):
        if value is None:
            axes.text(0, place, f" {UNKNOWN}", va="center")


def _label(sums: GroupSums) -> str:
    name = UNKNOWN if sums.group is None else sums.group
    return name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…"
