"""What an idle server costs: `python -m evals.studies.idle`.

CPU time of the server process over a while without requests, seen from outside, before and after it
has served some. An engine thread that spins would show here.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from evals.entry import finish
from evals.lab import cpu_seconds, running_server, save
from evals.studies.sharing import burst

console = Console()


def idle_share(pid: int, duration_s: int, label: str) -> float:
    """CPU seconds per second without requests, as a fraction of one core."""
    before_s, started_s = cpu_seconds(pid), time.monotonic()
    for _ in track(range(duration_s), description=label, console=console):
        time.sleep(1)
    return (cpu_seconds(pid) - before_s) / (time.monotonic() - started_s)


def main(
    seconds: Annotated[int, typer.Option(help="Seconds to watch, twice.")] = 60,
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
) -> None:
    """Measure the CPU time of an idle server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(model, Path(folder)) as (url, pid),
    ):
        fresh = idle_share(pid, seconds, "never used")
        asyncio.run(burst(url, model, 8, 32))
        used = idle_share(pid, seconds, "after requests")
    figures = {"seconds": seconds, "fresh_core_share": fresh, "used_core_share": used}
    console.print_json(data=figures)
    console.print(f"written to {save('idle', figures)}")


if __name__ == "__main__":
    finish("evals.studies.idle", lambda: typer.run(main))
