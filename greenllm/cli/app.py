"""The commands. What each needs is imported when it runs, so that `--help` stays quick."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.evaluation_config import EvalConfig
from evals.profiling.config import ProfileConfig
from evals.tuning.config import TuneConfig
from finetune.compressing.config import CompressConfig
from finetune.recipe import Recipe
from greenllm import __version__
from greenllm.cli.adapters import adapters
from greenllm.cli.bench import bench
from greenllm.cli.options import with_options
from greenllm.config import ENVIRONMENT_PREFIX, load
from serving.config import ServeConfig

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the ledger (env GREENLLM_DATA_DIR); default is the platform's."),
]
app = typer.Typer(
    name="greenllm",
    help="Green LLM inference and fine-tuning: every request and adapter comes with its joules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(bench)
app.add_typer(adapters)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Green LLM inference and fine-tuning: every request and adapter comes with its joules."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@with_options(ServeConfig, positional="model")
def serve(flags: Mapping[str, Any], config: Path | None) -> None:
    """Serve a model over an OpenAI-compatible HTTP API that reports energy per request."""
    from greenllm.cli.serve import run

    run(load(ServeConfig, flags=flags, file=config, environment=os.environ))


@app.command()
@with_options(Recipe, environment=False)
def finetune(flags: Mapping[str, Any], config: Path | None) -> None:
    """Train an adapter (or every weight) on your examples, and print the bill in joules."""
    from greenllm.cli.finetune import run

    where = os.environ.get(ENVIRONMENT_PREFIX + "DATA_DIR")
    given = {**flags, "data_dir": flags["data_dir"] or (Path(where) if where else None)}
    run(load(Recipe, flags=given, file=config))


@app.command(name="eval")
@with_options(EvalConfig, positional="tasks", environment=False)
def evaluate(flags: Mapping[str, Any], config: Path | None) -> None:
    """Score a model on tasks, and say what a right answer costs in joules."""
    from greenllm.cli.evaluate import run

    run(load(EvalConfig, flags=flags, file=config))


@app.command()
@with_options(TuneConfig, positional="model", environment=False)
def tune(flags: Mapping[str, Any], config: Path | None) -> None:
    """Find the settings that need the fewest joules per token here, at a quality you keep."""
    from greenllm.cli.tune import run

    run(load(TuneConfig, flags=flags, file=config))


@app.command()
@with_options(CompressConfig, positional="model", environment=False)
def compress(flags: Mapping[str, Any], config: Path | None) -> None:
    """Make a smaller model of one, and say what it cost and when it has paid back."""
    from greenllm.cli.compress import run

    run(load(CompressConfig, flags=flags, file=config))


@app.command()
def truncate(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or 'bundled'.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the checkpoint.")],
    layers: Annotated[
        int | None,
        typer.Option(help="Layers to keep; default is the trained exit nearest a third."),
    ] = None,
) -> None:
    """Write a model's first layers with its head as a checkpoint: a draft model for any engine."""
    from greenllm.cli.truncate import run

    run(model, layers, output)


@app.command()
@with_options(ProfileConfig, positional="model", environment=False)
def profile(flags: Mapping[str, Any], config: Path | None) -> None:
    """Say where one step of a model spends FLOPs, bytes, time and joules, part by part."""
    from greenllm.cli.profile import run

    run(load(ProfileConfig, flags=flags, file=config))


@app.command()
def report(
    data_dir: DataDir = None,
    group_by: Annotated[
        str, typer.Option(help="model, adapter, key, hour, outcome or endpoint.")
    ] = "model",
    since: Annotated[str | None, typer.Option(help="Unix seconds or ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Unix seconds or ISO 8601.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every receipt to this CSV file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write sums and sessions as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot (.png or .svg).")] = None,
) -> None:
    """Print what the ledger holds: joules and grams per group, and whether they add up."""
    from greenllm.cli.report import Export, run

    run(data_dir, group_by, since, until, Export(csv=csv, json=json, plot=plot))


@app.command()
def card(
    file: Annotated[
        Path,
        typer.Argument(help="A run's green_report.json, evaluation.json or compression.json."),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="json, hf (Hugging Face metadata), spdx (SPDX 3.0.1 JSON-LD) or csv.",
        ),
    ] = "json",
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Print the green score card of a run, or put it into a form for others.

    The card is checked against its JSON Schema; what is unknown is null.
    """
    from greenllm.cli.card import run

    run(file, form, output)


@app.command()
def estimate(
    hours: Annotated[float | None, typer.Option(help="Hours of use (with --hardware).")] = None,
    hardware: Annotated[
        str, typer.Option(help="'cpu' (this machine's), or a GPU such as 'H100 SXM'.")
    ] = "cpu",
    vcpus: Annotated[int | None, typer.Option(help="vCPUs, for --hardware cpu.")] = None,
    utilisation: Annotated[float, typer.Option(help="Mean load, 0 to 1.")] = 0.5,
    parameters_b: Annotated[
        float | None, typer.Option(help="Model size in billions of parameters.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt tokens.")] = 0,
    completion_tokens: Annotated[int, typer.Option(help="Generated tokens.")] = 0,
    zone: Annotated[
        str, typer.Option(help="Grid zone for grams: ISO code, country name or WORLD.")
    ] = "WORLD",
    pue: Annotated[float, typer.Option(help="Power usage effectiveness.")] = 1.0,
) -> None:
    """Estimate energy and carbon offline: hours of hardware, or tokens of a model.

    Every figure comes with its low and high; what nobody published is a dash.
    """
    from greenllm.cli.estimate import Question, run

    run(
        Question(
            hours=hours,
            hardware=hardware,
            vcpus=vcpus,
            utilisation=utilisation,
            parameters_b=parameters_b,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            zone=zone,
            pue=pue,
        )
    )


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Say what this machine can measure, what was chosen and why, and what could be better."""
    from greenllm.cli.doctor import run

    run(data_dir)
