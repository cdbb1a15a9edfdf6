"""What the two commands found, as tables and plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from evals.studies import study
from evals.studies.truth.figures import CLASSES
from evals.tables import Row, table, text, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = {
    "requests": value("requests"),
    "active, bias": value("active_bias", "+.1%"),
    "active, MAPE": value("active_mape", ".1%"),
    "idle, bias": value("idle_bias", "+.1%"),
    "total, p90 of errors": value("total_p90", ".1%"),
    "90 % interval, median ±": value("median_uncertainty", ".1%"),
    "covers": value("coverage", ".1%"),
}

# More arms than these have their classes in the JSON alone.
_FEW_ARMS = 6


def page(result: study.Result) -> str:
    """The simulation, or the measured step costs."""
    return _measured_page(result) if "games" in result else _simulated_page(result)


def _simulated_page(result: study.Result) -> str:
    targets = {
        "target": value("target"),
        "worst": value("worst", ".1%"),
        "of": value("of"),
        "met": lambda row: "yes" if row["met"] else "no",
    }
    books = {"residual": value("residual", ".0e"), "not final": value("not_final")}
    arms = [{"arm": name, **row, **row["classes"]["all"]} for name, row in result["arms"].items()]
    parts = [
        f"Simulated: {result['seeds']} runs of {result['seconds']:g} s of load per arm"
        f" ({_load(arms)}), {result['glitches']} glitches of each kind in a run.",
        f"Targets:\n\n{table(targets, result['targets'])}",
        f"All requests, by meter and law of costs:\n\n"
        f"{table({'arm': value('arm'), **_FIGURES, **books}, arms)}",
        f"Classes of requests, all laws together:\n\n"
        f"{table({'meter': value('meter'), 'class': value('class'), **_FIGURES}, _pooled(result))}",
    ]
    if len(result["arms"]) <= _FEW_ARMS:
        each = table({"arm": value("arm"), "class": value("class"), **_FIGURES}, _each(result))
        parts.append(f"Classes of requests in each arm:\n\n{each}")
    return "\n\n".join(parts) + "\n"


def _load(arms: Sequence[Row]) -> str:
    row = arms[0]
    counts = ("steps", "preemptions", "cached_tokens", "drafted_tokens")
    return ", ".join(f"{text(row[name])} {name.replace('_', ' ')}" for name in counts)


def _pooled(result: study.Result) -> Iterator[Row]:
    for meter, classes in result["meters"].items():
        for name, row in classes.items():
            yield {"meter": meter, "class": name, **row}


def _each(result: study.Result) -> Iterator[Row]:
    for arm, row in result["arms"].items():
        for name, figures in row["classes"].items():
            if name != "all":
                yield {"arm": arm, "class": name, **figures}


def _measured_page(result: study.Result) -> str:
    games = {
        "step": value("step"),
        "seconds of the whole step": value("worth_s", ".5f"),
        "on the wrong request": value("misplaced", ".1%"),
        "of all its parts, mean": value("mean_misplaced", ".1%"),
        "noise floor": value("floor", ".1%"),
        "noise floor, mean": value("mean_floor", ".1%"),
    }
    players = {
        "step": value("step"),
        "request": value("player"),
        "Shapley": value("share", ".1%"),
        "account": value("fitted", ".1%"),
        "account over Shapley": value("error", "+.1%"),
        "halves apart": value("noise", ".1%"),
    }
    about = (
        f"{result['model']}, {result['quantize']}, {result['threads']} threads, {result['unit']}"
        f" seconds, medians of {result['rounds']} rounds; the fit has windows of"
        f" {result['window']} steps"
    )
    rows = [
        {"step": game["step"], **player} for game in result["games"] for player in game["players"]
    ]
    parts = (about + ":", table(games, result["games"]), table(players, rows))
    return "\n\n".join(parts) + "\n"


def plot(figure: Figure, result: study.Result) -> None:
    """Errors by meter and law, and coverage by class; or what the account misplaces."""
    if "games" in result:
        _measured_plot(figure, result)
        return
    figure.set_size_inches(10, 4)
    first, second = figure.subplots(1, 2)
    _draw_errors(first, result)
    _draw_coverage(second, result)


def _draw_errors(axes: Axes, result: study.Result) -> None:
    lines: dict[str, tuple[list[str], list[float], str]] = {}
    for arm, row in result["arms"].items():
        meter, _, law = arm.partition("/")
        x, y, _ = lines.setdefault(law, ([], [], "o-"))
        x.append(meter)
        y.append(100 * row["classes"]["all"]["active_mape"])
    study.curves(
        axes, lines, xlabel="meter", ylabel="MAPE of active joules, %", title="Law of costs"
    )
    axes.set_ylim(bottom=0)


def _draw_coverage(axes: Axes, result: study.Result) -> None:
    axes.axhspan(87, 93, color="C2", alpha=0.2)
    lines = {}
    for meter, classes in result["meters"].items():
        names = [name for name in CLASSES if "coverage" in classes.get(name, {})]
        lines[meter] = (names, [100 * classes[name]["coverage"] for name in names], "o")
    study.curves(
        axes,
        lines,
        ylabel="true totals within the interval, %",
        ylim=(0, 103),
        title="90 % intervals by class of request",
    )
    axes.tick_params(axis="x", rotation=30)


def _measured_plot(figure: Figure, result: study.Result) -> None:
    figure.set_size_inches(6, 3.6)
    names = [game["step"] for game in result["games"]]
    lines = {
        label: (names, [100 * game[key] for game in result["games"]], look)
        for label, key, look in (
            ("account", "mean_misplaced", "o"),
            ("noise floor", "mean_floor", "s"),
        )
    }
    study.curves(
        figure.subplots(),
        lines,
        ylabel="% of a step on the wrong request",
        ylim=(0, None),
        title=f"Shares against Shapley values, {result['model']}",
    )


STUDY = study.Study("truth", page, plot)
