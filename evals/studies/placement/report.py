"""A simulation as tables and a plot; what is simulated, measured and assumed is said in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evals.studies import study
from evals.tables import Column, Row, table, text, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = {
    "awake, mean": value("mean_awake"),
    "mJ/token": value("joules_per_token", ".3f", 1e3),
    "idle, asleep, starting": value("idle_share", ".1%"),
    "p50 s": value("p50_s"),
    "p95 s": value("p95_s"),
    "prompt read, p95 s": value("first_p95_s"),
    "wakes": value("wakes"),
}


def _away(row: Row) -> str:
    share = sum(row["served"][1:]) / row["requests"] if row["requests"] else None
    return text(share, ".1%")


_POLICY, _MACHINES = {"policy": value("policy")}, {"machines": value("machines")}
_GRAMS = {"g CO2e per 1,000 requests": value("grams_per_1000"), "away": _away}
_RUN = {
    "requests": value("requests"),
    "simulated s": value("horizon_s"),
    "took, CPU s": value("run_s"),
}
TABLES: Mapping[str, tuple[str, Mapping[str, Column]]] = {
    "replicas": ("How many machines", {**_POLICY, **_MACHINES, **_FIGURES}),
    "limits": ("Which batch limit", {**_POLICY, "batch limit": value("limit"), **_FIGURES}),
    "fleets": (
        "Which policy, by size of the fleet",
        {**_MACHINES, **_POLICY, **_FIGURES, **_GRAMS, **_RUN},
    ),
    "days": (
        "Which region, a day: means of the 15th of each month",
        {**_POLICY, **_FIGURES, **_GRAMS},
    ),
}


def page(result: study.Result) -> str:
    """All questions that were asked."""
    parts = [_about(result)]
    for name, (title, columns) in TABLES.items():
        if rows := result["studies"].get(name):
            parts.append(f"{title}:\n\n{table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def _about(result: study.Result) -> str:
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


def plot(figure: Figure, result: study.Result) -> None:
    """Machines awake, batch limits and grams, one panel each; what was not made stays empty."""
    figure.set_size_inches(12, 3.9)
    first, second, third = figure.subplots(1, 3)
    studies = result["studies"]
    _draw_replicas(first, studies.get("replicas") or [])
    _draw_limits(second, studies.get("limits") or [])
    _draw_grams(third, studies.get("days") or [])
    methods = ", ".join(result["machine_model"]["methods"] or ("joules of unknown method",))
    figure.suptitle(f"Simulated, on a measured curve ({result['arm']}; {methods})", fontsize=10)


def _mj(rows: Sequence[Row]) -> list[float]:
    return [1e3 * row["joules_per_token"] for row in rows]


def _draw_replicas(axes: Axes, rows: Sequence[Row]) -> None:
    spread = [row for row in rows if row["policy"] == "spread"]
    for row in rows:
        if row["policy"] != "spread":
            label = f"pack, limit {row['limit']}"
            axes.plot([row["mean_awake"]], _mj([row]), "C2*", ms=11, label=label)
    machines = [row["machines"] for row in spread]
    axes.plot(machines, _mj(spread), "C0o-", label="spread")
    study.labelled(axes, xlabel="machines awake", ylabel="mJ per token", title="How many machines")
    beside = axes.twinx()
    beside.plot(machines, [row["p95_s"] for row in spread], "C1s--", label="p95 of spread")
    beside.set(ylabel="p95, s", yscale="log")
    lines = [*axes.get_lines(), *beside.get_lines()]
    axes.legend(handles=lines, fontsize="small", loc="center right")


def _draw_limits(axes: Axes, rows: Sequence[Row]) -> None:
    lines = {}
    for colour, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        chosen = [row for row in rows if row["policy"] == policy]
        x, y = [row["p95_s"] for row in chosen], _mj(chosen)
        lines[policy] = (x, y, f"o-C{2 * colour}")
        if policy != "spread":  # its points lie on each other
            for row, at in zip(chosen, zip(x, y, strict=True), strict=True):
                axes.annotate(f" {row['limit']}", at, va="bottom")
    study.curves(
        axes, lines, xlabel="p95, s", ylabel="mJ per token", title="Which batch limit (numbers)"
    )


def _draw_grams(axes: Axes, rows: Sequence[Row]) -> None:
    by_policy = {str(row["policy"]): list(row["grams_per_1000_by_day"]) for row in rows}
    lines = {name: (range(1, len(grams) + 1), grams, "o-") for name, grams in by_policy.items()}
    highest = max(map(max, by_policy.values()), default=1.0)
    study.curves(
        axes,
        lines,
        xlabel="month (its 15th)",
        ylabel="g CO2e per 1,000 requests",
        ylim=(0, 1.5 * highest),  # room for the legend
        title="Which region",
    )


STUDY = study.Study("placement", page, plot)
