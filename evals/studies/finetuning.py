"""Ways of fine-tuning side by side, in joules: `python -m evals.studies.finetuning`.

Every run is `greenllm finetune` in a process of its own with the same data, steps and evaluation;
methods take turns, seed by seed. What is compared is each run's own report. Learning rates are
the methods' defaults. `--throughput` instead trains the same with TRL's trainer alone, in turns,
and compares tokens per second.

Not covered: searching each method's best settings.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import BenchError, finish, split_names
from evals.lab import RESULTS, save
from evals.studies.finetuning_report import draw, markdown
from evals.studies.ratios import paired_ratio

console = Console(stderr=True)
METHODS = ("full", "lora", "qlora", "dora", "rslora")
Report = Mapping[str, Any]


def train(options: Sequence[str]) -> Report:
    """One run's report.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = [sys.executable, "-m", "greenllm", "finetune", *options, "--output", str(output)]
        done = _run(command)
        if done.returncode != 0:
            raise BenchError(f"a run failed: {done.stderr.strip()[-500:]}")
        found: Report = json.loads((output / "green_report.json").read_text())
        return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run without the servers' OMP_WAIT_POLICY, which `lab` sets: it halves training's speed."""
    environment = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
    found: dict[str, Any] = {}
    for method, reports in runs.items():
        medians = {
            name: None if None in values else statistics.median(values)
            for name, values in ((n, [r[n] for r in reports]) for n in reports[0])
        }
        joules = [[r["training_j"] for r in group] for group in (reports, first)]
        found[method] = {**medians, "joules_over_first": paired_ratio(*joules), "runs": reports}
    return found


def tokens_per_s(report: Report) -> float:
    """Training tokens over the training phase."""
    seconds = report["measures"]["energy"]["by_phase"]["training"]["duration_s"]
    return float(report["training"]["tokens"] / seconds)


def baseline(data: str, steps: int, batch_size: int, seed: int) -> float:
    """Tokens per second of TRL's trainer alone with the same settings."""
    command = [sys.executable, "-m", "evals.studies.finetuning_baseline", data]
    command += [str(number) for number in (steps, batch_size, seed)]
    done = _run(command)
    if done.returncode != 0:
        raise BenchError(f"the baseline failed: {done.stderr.strip()[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_s"])


def measure_throughput(data: str, steps: int, rounds: int, batch_size: int) -> dict[str, Any]:
    """Both in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    shares: list[float] = []
    for seed in range(rounds):
        options = ["--data", data, "--steps", str(steps), "--answers", "0", "--seed", str(seed)]
        options += ["--batch-size", str(batch_size), "--validation-share", "0.1"]
        report = train(options)
        ours.append(tokens_per_s(report))
        shares.append(figures(report)["metering_share"] or 0.0)
        theirs.append(baseline(data, steps, batch_size, seed))
        console.print(f"round {seed + 1}: {ours[-1]:,.0f} and {theirs[-1]:,.0f} tokens/s")
    return {
        "tokens_per_s": statistics.median(ours),
        "baseline_tokens_per_s": statistics.median(theirs),
        "over_baseline": paired_ratio(ours, theirs),
        "metering_share": statistics.median(shares),
        "steps": steps,
        "rounds": rounds,
    }


def measure_methods(
    data: str, validation: str, seeds: int, epochs: float, methods: Sequence[str]
) -> dict[str, Any]:
    """All methods with all seeds, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for seed in range(seeds):
        for method in methods:
            options = ["--data", data, "--method", method, "--epochs", str(epochs)]
            options += ["--seed", str(seed)] + (["--validation", validation] if validation else [])
            runs[method].append(figures(train(options)))
            console.print(f"seed {seed + 1}/{seeds} {method}: {runs[method][-1]}")
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
        path = save(
            name or "finetuning_throughput",
            measure_throughput(data, steps, seeds, batch_size),
            module="finetuning",
        )
        console.print(f"written to {path}")
        return
    chosen, name = split_names(methods) or list(METHODS), name or "finetuning"
    result = measure_methods(data, validation, seeds, epochs, chosen)
    path = save(name, result, module="finetuning")
    draw(result, RESULTS / f"{name}.svg")
    (RESULTS / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    console.print(markdown(result))
    console.print(f"written to {path}")


if __name__ == "__main__":
    finish("evals.studies.finetuning", lambda: typer.run(main))
