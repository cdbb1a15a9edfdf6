"""Asks a server everything that its OpenAPI document allows, and more: `make fuzz`.

Contract: a server of its own is started, and Schemathesis, which has an environment of its own,
sends it made-up requests to each route. An answer that the document does not list (its status, its
type, its schema), or any 5xx, is a failure, and the exit code is 1. What memory the server had
before and afterwards is printed.

Not covered: valid ids (almost all that are made up are of nothing), uploads of training data that
train.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from evals.entry import finish
from evals.servers import running_server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def command(program: Path, url: str, cases: int, seed: int | None) -> list[str]:
    """How Schemathesis is called."""
    words = [str(program), "run", f"{url}/openapi.json", "--max-examples", str(cases)]
    words += ["--phases", "fuzzing", "--checks", ",".join(CHECKS), "--request-timeout", "60"]
    return words if seed is None else [*words, "--seed", str(seed)]


def memory_mb(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1000 for line in lines if line.startswith("VmRSS"))


def main(
    program: Annotated[Path, typer.Argument(help="Schemathesis' command, st.")],
    cases: Annotated[int, typer.Option(help="Requests for each route.")] = 200,
    seed: Annotated[int | None, typer.Option(help="Of a run that is to be repeated.")] = None,
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
) -> None:
    """Fuzz a server over HTTP."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, pid = stack.enter_context(running_server(model, folder, "--log", "off"))
        before_mb = memory_mb(pid)
        done = subprocess.run(command(program, url, cases, seed), check=False)
        typer.echo(f"memory of the server: {before_mb} MB before, {memory_mb(pid)} MB after")
    raise typer.Exit(done.returncode)


if __name__ == "__main__":
    finish("evals.chaos.fuzz", lambda: typer.run(main))
