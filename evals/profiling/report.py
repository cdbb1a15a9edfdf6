"""A profile as it is written: JSON, a page, and a picture of the shares.

Contract: JSON has every part by itself, in bytes, seconds and joules; the page has their means over
the layers unless every layer is asked for. Shares are those of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.pages import page
from evals.profiling.profile import Profile, Row, by_kind

SCHEMA = 2
_MEASURES: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("FLOPs", lambda row: row.counts.flops),
    ("bytes", lambda row: row.counts.moved_bytes),
    ("time", lambda row: row.time_s),
    ("joules (by time)", lambda row: row.active_j),
)


def as_dict(profile: Profile) -> dict[str, Any]:
    """Everything that was found."""
    options = asdict(profile.config)
    output = profile.config.output
    options["output"] = None if output is None else str(output)
    return {
        "schema": SCHEMA,
        "model": asdict(profile.subject),
        "options": options,
        "plain_step_s": profile.plain_step_s,
        "overhead": profile.overhead,
        "energy": asdict(profile.energy),
        "bytes_are": "computed",
        "joules_of_parts_are": "by time",
        "parts": [_plain(row) for row in profile.rows],
        "total": {**_plain(profile.total), "kind": "step"},
    }


def _plain(row: Row) -> dict[str, Any]:
    counts = row.counts
    return {
        "kind": row.kind,
        "layer": row.layer,
        **asdict(counts),
        "moved_bytes": counts.moved_bytes,
        "flops_per_byte": counts.intensity,
        "time_s": row.time_s,
        "active_j": row.active_j,
    }


def markdown(profile: Profile) -> str:
    """The step in sentences, and a table of its parts."""
    shown = profile.rows if profile.config.each_layer else by_kind(profile.rows)
    return page(
        Path(__file__).with_name("profile.md.jinja"),
        subject=profile.subject,
        config=profile.config,
        energy=profile.energy,
        plain_step_s=profile.plain_step_s,
        overhead=profile.overhead,
        rows=shown,
        total=profile.total,
    )


def shares(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Shares of each row in each measure that is known."""
    found = {}
    for name, measure in _MEASURES:
        values = [value for value in map(measure, rows) if value is not None]
        total = sum(values)
        if len(values) == len(rows) and total > 0:
            found[name] = [value / total for value in values]
    return found


def draw(profile: Profile, path: Path) -> None:
    """A stacked bar for each measure: the shares of the kinds of parts."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = by_kind(profile.rows)
    bars = shares(rows)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for number, row in enumerate(rows):
        widths = [bar[number] for bar in bars.values()]
        axes.barh(list(bars), widths, left=left, label=row.kind)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the step", title=f"{profile.subject.name}: its parts")
    figure.legend(loc="outside right upper")
    with mpl.rc_context({"svg.hashsalt": "greenllm"}):
        figure.savefig(path, metadata={"Date": None})
