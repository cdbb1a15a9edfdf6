"""The page and the plot of a run: what there was at the beginning and the end, and what grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.soak.sampling import Sample
from evals.soak.slopes import second_half, theil_sen
from evals.studies.study import Result, Study, labelled
from evals.tables import table, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = "resident memory, MB"
# A figure's name, the field of samples that it is, and how many of these are one.
FIGURES: Mapping[str, tuple[str, float]] = {
    MEMORY: ("rss_bytes", 1e6),
    "threads": ("threads", 1.0),
    "descriptors": ("descriptors", 1.0),
    "children": ("children", 1.0),
    "ledger, MB": ("ledger_bytes", 1e6),
}
_S_PER_HOUR = 3600.0


def hours_of(samples: Sequence[Sample]) -> list[float]:
    """When samples were taken."""
    return [sample.at_s / _S_PER_HOUR for sample in samples]


def figures_of(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Samples by figure."""
    return {
        name: [getattr(sample, field) / unit for sample in samples]
        for name, (field, unit) in FIGURES.items()
    }


def slopes_of(hours: Sequence[float], figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What each figure was, and how fast it grew per hour in the second half."""
    half = second_half(hours)

    def row(values: Sequence[float]) -> dict[str, float | None]:
        slope = theil_sen(hours[half], values[half])
        found = {"first": values[0], "half": values[half][0], "last": values[-1]}
        if slope is None:
            return {**found, "slope": None, "low": None, "high": None}
        return {**found, "slope": slope.value, "low": slope.low, "high": slope.high}

    return {name: row(values) for name, values in figures.items()}


def page(result: Result) -> str:
    """Markdown."""
    columns = {
        "figure": value("figure"),
        "first": value("first", ".1f"),
        "half way": value("half", ".1f"),
        "last": value("last", ".1f"),
        "per hour, second half": value("slope", "+.2f"),
        "low": value("low", "+.2f"),
        "high": value("high", "+.2f"),
    }
    rows = [{"figure": name, **row} for name, row in result["slopes"].items()]
    broken = [f"- {text}" for text in result["broken"]] or ["Every promise was kept."]
    return "\n\n".join([_about(result), table(columns, rows), "\n".join(broken)]) + "\n"


def _about(result: Result) -> str:
    def parts() -> Iterator[str]:
        tally = result["requests"]
        yield f"{result['model']}, {result['minutes']:g} minutes, trace: {result['trace']}"
        yield f"{result['rate_scale']:g} times its rate, lengths x {result['length_factor']:.3f}"
        yield f"{tally['answered']} answered, {tally['left']} left, {tally['not_sent']} not sent"
        yield from (f"{count} {reason}" for reason, count in sorted(tally["failures"].items()))
        yield f"{tally['adapters_loaded']} adapters loaded, fine-tuning job: {tally['job']}"

    return "; ".join(parts()) + "."


def plot(figure: Figure, result: Result) -> None:
    """Each figure over time; a dotted line is where the second half begins."""
    minutes = [60 * hour for hour in result["hours"]]
    figure.set_size_inches(8, 2 * len(FIGURES))
    many = figure.subplots(len(FIGURES), 1, sharex=True)
    for axes, (name, values) in zip(many, result["samples"].items(), strict=True):
        axes.plot(minutes, values)
        axes.axvline((minutes[0] + minutes[-1]) / 2, color="gray", linestyle=":")
        labelled(axes, ylabel=name, legend=False)
    many[-1].set(xlabel="minutes")


STUDY = Study("soak", page, plot, package="evals")
