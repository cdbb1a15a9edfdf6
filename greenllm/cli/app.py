"""The commands, by name: where each is, and its help. Nothing of them is imported for `--help`."""

from __future__ import annotations

from typing import Annotated

import typer

from greenllm import __version__
from greenllm.cli.lazy import CommandRow, add_commands

HELP = "Green LLM inference and fine-tuning: every request and adapter comes with its joules."
GROUPS = {
    "bench": "Measure servers.",
    "adapters": "List, add, remove and merge LoRA adapters.",
    "keys": "Create, list, rotate and revoke the API keys of a server.",
}
COMMANDS = {
    "serve": CommandRow(
        "serving.commands:serve",
        "Serve a model over an OpenAI-compatible HTTP API that reports energy per request.",
        positional="model",
        environment=True,
    ),
    "finetune": CommandRow(
        "finetune.commands.finetune:finetune",
        "Train an adapter (or every weight) on your examples, and print the bill in joules.",
    ),
    "eval": CommandRow(
        "evals.commands.evaluate:evaluate_tasks",
        "Score a model on tasks, and show what a right answer costs in joules.",
        positional="tasks",
    ),
    "tune": CommandRow(
        "evals.commands.tune:tune",
        "Find the settings that need the fewest joules per token here, at a quality you keep.",
        positional="model",
    ),
    "compress": CommandRow(
        "finetune.commands.compress:compress",
        "Make a smaller model, and show what it cost and when it has paid back.",
        positional="model",
    ),
    "truncate": CommandRow(
        "greenllm.cli.truncate:truncate",
        "Write a model's first layers with its head as a checkpoint: a draft model for any engine.",
    ),
    "profile": CommandRow(
        "evals.commands.profile:profile",
        "Show where one step of a model spends FLOPs, bytes, time and joules, part by part.",
        positional="model",
    ),
    "report": CommandRow(
        "greenllm.cli.report:report",
        "Print the ledger: joules and grams per group, and whether they add up.",
    ),
    "card": CommandRow(
        "greenllm.cli.card:card",
        "Print the green score card of a run, or convert it to another format.\n\n"
        "The card is checked against its JSON Schema; unknown values are null.",
    ),
    "estimate": CommandRow(
        "greenllm.cli.estimate:estimate",
        "Estimate energy and carbon offline: hours of hardware, or tokens of a model.\n\n"
        "Every figure has a low and a high value; a figure that nobody published is a dash.",
    ),
    "doctor": CommandRow(
        "greenllm.cli.doctor:doctor",
        "Show what this machine can measure, which meter was chosen and why, and what could"
        " be better.",
    ),
    "calibrate": CommandRow(
        "greenllm.cli.calibrate:calibrate",
        "Fit the watts of this machine to a meter at the wall, for joules where there is no"
        " sensor.\n\nThe machine is loaded in stages meanwhile: let nothing else run.",
    ),
    "bench serve": CommandRow(
        "evals.commands.bench:bench_serve",
        "Send requests to a server; print tokens/s, latencies, joules, CPU time and memory.",
        positional="url",
    ),
    "adapters list": CommandRow(
        "greenllm.cli.adapters:show",
        "Show every adapter in the data folder; broken ones say why.",
    ),
    "adapters add": CommandRow(
        "greenllm.cli.adapters:add",
        "Check an adapter and copy it into the data folder, where servers find it by its name.\n\n"
        "To replace one, remove it first; the command prints the requests that a running"
        " server needs.",
    ),
    "adapters remove": CommandRow(
        "greenllm.cli.adapters:remove",
        "Delete an adapter from the data folder.\n\n"
        "A server that found it there answers 404 to new requests; running ones finish. One that"
        " was told to load it from another folder keeps it until it is told to unload it.",
    ),
    "adapters merge": CommandRow(
        "greenllm.cli.adapters:merge",
        "Write the base with an adapter merged into it: a full model that any tool can load.",
    ),
    "keys create": CommandRow(
        "serving.keys.commands:create",
        "Make an API key, and print it once.\n\n"
        "A server that uses the file knows it within a second.",
        positional="name",
    ),
    "keys list": CommandRow(
        "serving.keys.commands:show", "Show the keys of a file: names, scopes, limits, state."
    ),
    "keys rotate": CommandRow(
        "serving.keys.commands:rotate",
        "Replace a key by a new one of the same name, which keeps what the old one owns.",
        positional="name",
    ),
    "keys revoke": CommandRow(
        "serving.keys.commands:revoke",
        "End a key's validity. Its name is not given again: what it owns passes to nobody.",
        positional="name",
    ),
}
app = typer.Typer(
    name="greenllm",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
add_commands(app, COMMANDS, GROUPS)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version, or run a command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
