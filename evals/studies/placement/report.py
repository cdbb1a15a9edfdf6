"""A simulation as tables and a plot; what is simulated, measured and assumed is said in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
DASH = "-"
Row = Mapping[str, Any]
COLUMNS = {
    "machines": "machines",
    "limit": "batch limit",
    "policy": "policy",
    "mean_awake": "awake, mean",
    "joules_per_token": "mJ/token",
    "idle_share": "idle, asleep, starting",
    "p50_s": "p50 s",
    "p95_s": "p95 s",
    "first_p95_s": "prompt read, p95 s",
    "wakes": "wakes",
    "grams_per_1000": "g CO2e per 1,000 requests",
    "away": "away",
    "requests": "requests",
    "horizon_s": "simulated s",
    "run_s": "took, CPU s",
}


def markdown(result: Mapping[str, Any]) -> str:
    """All studies that were made."""
    parts = [_about(result)]
    shared = ("mean_awake", "joules_per_token", "idle_share", "p50_s", "p95_s", "first_p95_s")
    tables = {
        "replicas": ("How many machines", ("policy", "machines", *shared, "wakes")),
        "limits": ("Which batch limit", ("policy", "limit", *shared, "wakes")),
        "fleets": (
            "Which policy, by size of the fleet",
            ("machines", "policy", *shared, "wakes", "grams_per_1000", "away", "requests",
             "horizon_s", "run_s"),
        ),
        "days": (
            "Which region, a day: means of the 15th of each month",
            ("policy", *shared, "wakes", "grams_per_1000", "away"),
        ),
    }  # fmt: skip
    for name, (title, columns) in tables.items():
        if rows := result["studies"].get(name):
            parts.append(f"{title}:\n\n{_table(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def _about(result: Mapping[str, Any]) -> str:
    machine = result["machine_model"]
    notes = "; ".join(f"{name}: {note}" for name, note in machine["notes"].items())
    zones = ", ".join(result["regions"]) or "none: no grams"
    return (
        f"**Simulated**, {result['date']}: `{result['command']}`. Machines of {result['curve']}"
        f" ({result['arm']}), {machine['idle_w']:.3g} W idle, {machine['sleep_w']:.3g} W asleep,"
        f" {machine['start_s']:.3g} s at {machine['start_w']:.3g} W to start. {notes}."
        f" Trace {result['trace']}, lengths x {result['length_factor']:.3g}; load"
        f" {result['load']:.0%} of what the fleet could do with full batches. Regions: {zones}."
    )


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [_line([COLUMNS[name] for name in columns]), _line(["---:"] * len(columns))]
    lines += [_line([_cell(row, name) for name in columns]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, name: str) -> str:
    """A figure; what is unknown is a dash."""
    if name == "away":
        return f"{sum(row['served'][1:]) / row['requests']:.1%}" if row["requests"] else DASH
    value = row[name]
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if name == "joules_per_token":
        return f"{1e3 * value:.3f}"
    if name == "idle_share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Machines awake, batch limits and grams, one panel each; what was not made stays empty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    studies = result["studies"]
    _draw_replicas(first, studies.get("replicas") or [])
    _draw_limits(second, studies.get("limits") or [])
    _draw_grams(third, studies.get("days") or [])
    methods = ", ".join(result["machine_model"]["methods"] or ("joules of unknown method",))
    figure.suptitle(f"Simulated, on a measured curve ({result['arm']}; {methods})", fontsize=10)
    figure.savefig(path)


def _draw_replicas(axes: Any, rows: Sequence[Row]) -> None:
    spread = [row for row in rows if row["policy"] == "spread"]
    for row in rows:
        if row["policy"] != "spread":
            label = f"pack, limit {row['limit']}"
            axes.plot(row["mean_awake"], 1e3 * row["joules_per_token"], "C2*", ms=11, label=label)
    machines = [row["machines"] for row in spread]
    axes.plot(machines, [1e3 * row["joules_per_token"] for row in spread], "C0o-", label="spread")
    axes.set(xlabel="machines awake", ylabel="mJ per token", title="How many machines")
    beside = axes.twinx()
    beside.plot(machines, [row["p95_s"] for row in spread], "C1s--", label="p95 of spread")
    beside.set(ylabel="p95, s", yscale="log")
    lines = [*axes.get_lines(), *beside.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], fontsize="small", loc="center right")
    axes.grid(visible=True, alpha=0.3)


def _draw_limits(axes: Any, rows: Sequence[Row]) -> None:
    for colour, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        chosen = [row for row in rows if row["policy"] == policy]
        x = [row["p95_s"] for row in chosen]
        y = [1e3 * row["joules_per_token"] for row in chosen]
        axes.plot(x, y, "o-", color=f"C{2 * colour}", label=policy)
        for row, at_x, at_y in zip(chosen, x, y, strict=True):
            if policy != "spread":  # its points lie on each other
                axes.annotate(f" {row['limit']}", (at_x, at_y), va="bottom")
    axes.set(xlabel="p95, s", ylabel="mJ per token", title="Which batch limit (numbers)")
    axes.grid(visible=True, alpha=0.3)
    if rows:
        axes.legend(fontsize="small")


def _draw_grams(axes: Any, rows: Sequence[Row]) -> None:
    for colour, row in enumerate(rows):
        values = row["grams_per_1000_by_day"]
        axes.plot(range(1, len(values) + 1), values, "o-", color=f"C{colour}", label=row["policy"])
    axes.set(xlabel="month (its 15th)", ylabel="g CO2e per 1,000 requests", title="Which region")
    highest = max((max(row["grams_per_1000_by_day"]) for row in rows), default=1.0)
    axes.set_ylim(0, 1.5 * highest)  # room for the legend
    axes.grid(visible=True, alpha=0.3)
    if rows:
        axes.legend(fontsize="small")
