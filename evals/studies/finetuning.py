"""Ways of fine-tuning side by side, in joules: `python -m evals.studies.finetuning`.

Question: which method reaches which quality for how many joules? Arms: every method is
`greenllm finetune` in a process of its own with the same data, steps and evaluation; methods take
turns, seed by seed. Learning rates are the methods' defaults. Measure: each run's own report.
`--throughput` instead trains the same with TRL's trainer alone, in turns, and compares tokens per
second.

Not covered: searching each method's best settings.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.studies import study
from evals.studies.ratios import column, medians, over, spread_of
from evals.tables import ratio, rows_of, table, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("full", "lora", "qlora", "dora", "rslora")
Report = Mapping[str, Any]


def page(result: study.Result) -> str:
    """One row for each method."""
    columns = {
        "method": value("method"),
        "trained": value("trained_parameters", ",.0f"),
        "MB": value("output_mb", ".1f"),
        "training J": value("training_j", ".1f"),
        f"x first ({spread_of(result['seeds'])})": ratio("joules_over_first"),
        "bill J": value("total_j", ".1f"),
        "validation loss": value("validation_loss", ".3f"),
        "exact": value("exact_match", ".0%"),
        "probe loss": value("probe_loss_change", "+.3f"),
        "predicted / actual": value("prediction_ratio", ".2f"),
    }
    return table(columns, rows_of(result["methods"], "method")) + "\n"


def plot(figure: Figure, result: study.Result) -> None:
    """Quality against the joules of training, every run a point."""
    panels: dict[str, dict[str, Any]] = {
        "validation_loss": {"ylabel": "validation loss"},
        "exact_match": {"ylabel": "exact matches", "ylim": (-0.05, 1.05)},
    }
    figure.set_size_inches(8.4, 3.6)
    for axes, (name, settings) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        points = {
            method: (column(found["runs"], "training_j"), column(found["runs"], name), "o")
            for method, found in result["methods"].items()
            if found[name] is not None
        }
        study.curves(axes, points, xlabel="joules of training (modelled)", **settings)
    figure.suptitle(f"Fine-tuning the bundled model on {result['data']}")


STUDY = study.Study("finetuning", page, plot)
THROUGHPUT = study.Study("finetuning")


def train(*options: str) -> Report:
    """One run's report.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        study.call("greenllm", "finetune", *options, "--output", str(output))
        return study.read(output / "green_report.json")


def figures(report: Report) -> dict[str, float | None]:
    """What of a report is compared."""
    energy, quality = report["measures"]["energy"], report["quality"]
    training = energy["by_phase"]["training"]
    matches, prediction = quality["exact_match"]["after"], report["prediction"]
    return {
        "training_j": training["total_j"],
        "training_active_j": training["active_j"],
        "training_s": training["duration_s"],
        "total_j": energy["total_j"],
        "trained_parameters": report["measures"]["model"]["trained"],
        "output_mb": report["measures"]["model"]["output_bytes"] / 1e6,
        "validation_loss": quality["validation_loss"]["after"]["value"],
        "exact_match": None if matches is None else matches["value"],
        "probe_loss_change": quality["probe_loss_change"]["value"],
        "prediction_ratio": None if prediction is None else prediction["ratio"],
        "metering_share": energy["metering_s"] / report["measures"]["running_time_s"],
    }


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over seeds, and joules beside those of the first method, seed by seed."""
    first = next(iter(runs.values()))
    return {
        method: {
            **{name: _median([report[name] for report in reports]) for name in reports[0]},
            "joules_over_first": over(reports, first, "training_j"),
            "runs": reports,
        }
        for method, reports in runs.items()
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def tokens_per_s(report: Report) -> float:
    """Training tokens over the training phase."""
    seconds = report["measures"]["energy"]["by_phase"]["training"]["duration_s"]
    return float(report["training"]["tokens"] / seconds)


def baseline(data: str, *numbers: int) -> float:
    """Tokens per second of TRL's trainer alone with the same steps, batch size and seed."""
    said = study.call("evals.studies.finetuning_baseline", data, *map(str, numbers))
    return float(json.loads(said.splitlines()[-1])["tokens_per_s"])


def measure_throughput(data: str, steps: int, rounds: int, batch_size: int) -> dict[str, Any]:
    """Both in turns."""

    def run(arm: str, seed: int) -> dict[str, float]:
        if arm == "trl":
            return {"tokens_per_s": baseline(data, steps, batch_size, seed)}
        options = ["--data", data, "--steps", str(steps), "--answers", "0", "--seed", str(seed)]
        report = train(*options, "--batch-size", str(batch_size), "--validation-share", "0.1")
        share = figures(report)["metering_share"] or 0.0
        return {"tokens_per_s": tokens_per_s(report), "metering_share": share}

    ours, theirs = study.interleave(run, rounds, ["greenllm", "trl"]).values()
    return {
        **medians(ours, "tokens_per_s"),
        "baseline_tokens_per_s": statistics.median(column(theirs, "tokens_per_s")),
        "over_baseline": over(ours, theirs, "tokens_per_s"),
        **medians(ours, "metering_share"),
        "steps": steps,
        "rounds": rounds,
    }


def measure_methods(
    data: str, validation: str, seeds: int, epochs: float, methods: Sequence[str]
) -> dict[str, Any]:
    """All methods with all seeds, in turns."""
    extra = ["--validation", validation] if validation else []

    def run(method: str, seed: int) -> dict[str, Any]:
        options = ["--data", data, "--method", method, "--epochs", str(epochs)]
        return figures(train(*options, "--seed", str(seed), *extra))

    runs = study.interleave(run, seeds, methods)
    return {"data": Path(data).name, "epochs": epochs, "seeds": seeds, "methods": summary(runs)}


def main(
    data: Annotated[str, typer.Option(help="As for greenllm finetune.")] = "example",
    validation: Annotated[str, typer.Option(help="JSONL file to score on.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs of every method.")] = 3,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    methods: Annotated[str, typer.Option(help="Methods; the first is compared with.")] = "",
    throughput: Annotated[bool, typer.Option(help="Compare speed with TRL alone.")] = False,
    steps: Annotated[int, typer.Option(help="Steps of a run, for --throughput.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Batch size, for --throughput.")] = 8,
    name: Annotated[str, typer.Option(help="Name of the result; else by what is measured.")] = "",
) -> None:
    """Measure methods, or the speed beside TRL's."""
    if throughput:
        found = measure_throughput(data, steps, seeds, batch_size)
        THROUGHPUT.report(found, name or "finetuning_throughput")
        return
    chosen = study.split_names(methods) or METHODS
    STUDY.report(measure_methods(data, validation, seeds, epochs, chosen), name)


if __name__ == "__main__":
    STUDY.run(main)
