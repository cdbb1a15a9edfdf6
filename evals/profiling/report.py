"""A profile as it is written: JSON, a page, and a picture of the shares.

Contract: JSON has every part by itself, in bytes, seconds and joules; the page has their means over
the layers unless every layer is asked for. Shares are those of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evals.profiling.profile import Profile, Row, by_kind
from evals.tables import grid, text

SCHEMA = 2
_HEAD = (
    "part", "parts", "MFLOP", "share", "MB", "share", "FLOP/byte", "ms", "share", "mJ by time",
)  # fmt: skip
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
    config, subject = profile.config, profile.subject
    step = "decoding step" if config.phase == "decode" else "prefill"
    tokens = "context" if config.phase == "decode" else "prompt"
    threads = f", threads: {subject.threads}" if subject.device == "cpu" else ""
    about = (
        f"{subject.parameters / 1e6:,.1f} million parameters, {subject.dtype}, quantized:"
        f" {subject.quantization}; {subject.device}{threads}; batch {config.batch},"
        f" {tokens} of {config.prompt_tokens} tokens."
    )
    paragraphs = (
        f"# {subject.name}: one {step}", about, _flops(profile), _time(profile), _joules(profile)
    )  # fmt: skip
    return "\n\n".join([*paragraphs, _table(profile)]) + "\n"


def _flops(profile: Profile) -> str:
    counts = profile.total.counts
    masked = f", {counts.masked_flops / counts.flops:.1%} of them on masked keys"
    return (
        f"FLOPs: {counts.flops:,} in matrix products{masked if counts.masked_flops else ''}, by"
        " PyTorch's counter. Bytes are computed."
    )


def _time(profile: Profile) -> str:
    return (
        f"Time: {profile.plain_step_s * 1e3:.3f} ms, and {profile.total.time_s * 1e3:.3f} ms"
        f" ({profile.overhead:+.1%}) with the stopwatches that the table is from."
    )


def _joules(profile: Profile) -> str:
    energy = profile.energy
    if energy.active_j is None or energy.idle_j is None or energy.foreign_j is None:
        return f"Joules: unknown ({energy.reason})."
    return (
        f"Joules: {energy.active_j * 1e3:.3f} mJ active, beside {energy.idle_j * 1e3:.3f} idle and"
        f" {energy.foreign_j * 1e3:.3f} of other processes, the mean of {energy.steps} steps"
        f" ({energy.method}, within {energy.uncertainty:.0%}); parts have theirs by time."
    )


def _table(profile: Profile) -> str:
    shown = profile.rows if profile.config.each_layer else by_kind(profile.rows)
    total = profile.total
    rows = [_cells(_name(row), row, total) for row in shown]
    # The step is the sum of its parts, not their mean.
    rows.append(("step", str(total.count), *_cells("", replace(total, count=1), total)[2:]))
    return grid(_HEAD, rows)


def _name(row: Row) -> str:
    if row.count > 1:
        return f"{row.kind}, mean of a layer"
    return row.kind if row.layer is None else f"layer {row.layer}: {row.kind}"


def _cells(name: str, row: Row, total: Row) -> tuple[str, ...]:
    """Figures of one part on the average; shares of all of them."""
    flops, moved_bytes = row.counts.flops, row.counts.moved_bytes
    active_j = None if row.active_j is None else row.active_j / row.count
    return (
        name,
        str(row.count),
        text(flops / row.count, factor=1e-6),
        f"{_share(flops, total.counts.flops):.1%}",
        text(moved_bytes / row.count, factor=1e-6),
        f"{_share(moved_bytes, total.counts.moved_bytes):.1%}",
        text(row.counts.intensity),
        text(row.time_s / row.count, factor=1e3),
        f"{_share(row.time_s, total.time_s):.1%}",
        text(active_j, factor=1e3),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


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
