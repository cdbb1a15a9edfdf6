"""`greenllm eval`: tasks to a server, and back come quality and joules.

Contract: without `--url` a server is started for this and ended; results are printed and, with
`--output`, written. Generated tasks are those the bundled model is scored on: parts of them were
never shown to it.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from evals.evaluation import TaskResult, evaluate, methods_of, together_of
from evals.evaluation_config import EvalConfig
from evals.evaluation_report import draw, markdown
from evals.served import connect
from evals.tasks.base import Task
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from greenllm import __version__
from greenllm.config import ConfigError
from greenllm.scorecard.origin import command_line, machine_name

SCHEMA = 1


def evaluate_tasks(config: EvalConfig) -> None:
    """Evaluate and report.

    Raises:
        GreenllmError: an option is wrong, a task cannot be read, or the server cannot be asked.
    """
    names = [name.strip() for name in (config.tasks or "").split(",") if name.strip()]
    tasks = find_tasks(
        names, generated_tasks(), limit=config.limit, shots=config.shots, seed=config.seed
    )
    if config.output is not None and config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"--output {config.output} is a file, not a folder", "output")
    console = Console(stderr=True, highlight=False)
    began = datetime.now(UTC)
    with _server(config, console) as url:
        model, results = asyncio.run(_evaluate(config, url, tasks, console))
    # Only now: what starts a server loads torch, which knows the GPUs.
    identity = identity_of(config, sys.argv[1:], began)
    found = report(identity, model, results)
    print(markdown(found))
    if config.output is not None:
        _write(found, config.output)


@contextmanager
def _server(config: EvalConfig, console: Console) -> Iterator[str]:
    if config.url is not None:
        yield config.url
        return
    from evals.servers import running_server

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = running_server(config.model, Path(folder), *shlex.split(config.serve))
        with console.status(f"starting a server for {config.model}"):
            url, _ = stack.enter_context(server)
        yield url


async def _evaluate(
    config: EvalConfig, url: str, tasks: Sequence[Task], console: Console
) -> tuple[str, list[TaskResult]]:
    results: list[TaskResult] = []
    async with connect(url, config.ask_for, config.api_key, config.timeout_s) as model:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for task in tasks:
                row = bar.add_task(task.name, total=task.count())

                def progress(done: int, count: int, row: Any = row) -> None:
                    bar.update(row, completed=done, total=count)

                results.append(await evaluate(model, task, config.concurrency, progress))
    return model.model, results


def identity_of(config: EvalConfig, words: Sequence[str], began: datetime) -> dict[str, Any]:
    """What was run, when and where; the machine of a server elsewhere is unknown."""
    return {
        "command": command_line(words),
        "began": began.isoformat(timespec="seconds"),
        "machine": machine_name() if config.url is None else None,
        "versions": {"greenllm": __version__},
    }


def report(
    identity: Mapping[str, Any], model: str, results: Sequence[TaskResult]
) -> dict[str, Any]:
    """Everything that was found, as it is written."""
    return {
        "schema": SCHEMA,
        "identity": dict(identity),
        "model": model,
        "energy": methods_of(results),
        "basis": together_of(results),
        "tasks": {result.task.name: result.as_dict() for result in results},
    }


def _write(found: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(markdown(found), encoding="utf-8")
    draw(found, folder / "evaluation.svg")
