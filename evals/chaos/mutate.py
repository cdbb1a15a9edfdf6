"""Sends a server bodies with mistakes: `python -m evals.chaos.mutate --cases 100000`.

Contract: every answer is counted by its route and status. The exit code is 1 if there was a 5xx, if
an answer did not come within a minute, if an error was no OpenAI error object, or if the server
does not answer a right request at the end. The same seed sends the same bodies.

Not covered: what `make fuzz` looks for, whether answers are those of the OpenAPI document.
"""

from __future__ import annotations

import http.client
import json
import random
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from evals.chaos.fuzz import memory_mb
from evals.chaos.mutations import RIGHT, mutated
from evals.entry import finish
from evals.servers import running_server
from evals.studies import study
from evals.tables import table

HEADERS = {"Content-Type": "application/json"}
PATIENCE_S = 60.0
_MOST_SHOWN = 5


@dataclass(slots=True)
class Found:
    """Answers by route and status, and bodies that a server failed at."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take another's in."""
        self.statuses += other.statuses
        self.failures += other.failures


def send(url: str, cases: int, seed: int, found: Found) -> None:
    """Send bodies on one connection, one after the other."""
    source = random.Random(seed)
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.netloc, timeout=PATIENCE_S)
    paths = list(RIGHT)
    for _ in range(cases):
        path = source.choice(paths)
        body = mutated(source.choice(RIGHT[path]), source)
        status: int | str
        try:
            connection.request("POST", path, body, HEADERS)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            status, text = type(error).__name__, b""
            connection.close()
        found.statuses[path, str(status)] += 1
        if not _is_right(status, text):
            found.failures.append(f"{path} {status} {body[:300]!r}: {text[:200]!r}")
    connection.close()


def _is_right(status: int | str, text: bytes) -> bool:
    """Whether an answer is one that a wrong body may have."""
    if not isinstance(status, int) or status >= 500:
        return False
    if status < 400:
        return True
    try:
        return set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False


def main(
    cases: Annotated[int, typer.Option(help="Bodies in all.")] = 10_000,
    connections: Annotated[int, typer.Option(help="Connections at a time.")] = 4,
    seed: Annotated[int, typer.Option(help="Of a run that is to be repeated.")] = 0,
    model: Annotated[str, typer.Option(help="Served as bundled.")] = "bundled",
) -> None:
    """Send a server bodies with mistakes."""
    parts = [Found() for _ in range(connections)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = ("--served-model-name", "bundled", "--log", "off")
        url, pid = stack.enter_context(running_server(model, folder, *names))
        before_mb = memory_mb(pid)
        pool = stack.enter_context(ThreadPoolExecutor(connections))
        share = cases // connections
        jobs = {
            pool.submit(send, url, share, seed * connections + number, part)
            for number, part in enumerate(parts)
        }
        with study.console.status("sending") as status:
            while wait(jobs, timeout=1.0).not_done:
                status.update(f"{sum(part.statuses.total() for part in parts):,} of {cases:,}")
        found = Found()
        for job, part in zip(jobs, parts, strict=True):
            job.result()
            found.add(part)
        path = "/v1/completions"
        http_ = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
        http_.request("POST", path, json.dumps(RIGHT[path][0]), HEADERS)
        last = http_.getresponse().status
        http_.close()
        typer.echo(f"memory of the server: {before_mb} MB before, {memory_mb(pid)} MB after")
    typer.echo(_page(found))
    for failure in found.failures[:_MOST_SHOWN]:
        typer.echo(failure, err=True)
    raise typer.Exit(0 if last == 200 and not found.failures else 1)


def _page(found: Found) -> str:
    statuses = sorted({status for _, status in found.statuses})
    rows = [
        {"route": path, **{s: f"{found.statuses[path, s]:,}" for s in statuses}} for path in RIGHT
    ]
    columns = {name: (lambda row, name=name: row[name]) for name in ("route", *statuses)}
    return table(columns, rows)


if __name__ == "__main__":
    finish("evals.chaos.mutate", lambda: typer.run(main))
