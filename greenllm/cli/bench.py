"""`greenllm bench`: measure servers.

Contract: `bench serve` sends to this machine unless another URL is given; what failed is listed
with its reason and counts for nothing. Exit code 1 if no request of a load succeeded, 2 if an
option is wrong or the server cannot be used at all. The environment is not read: `GREENLLM_MODEL`
and its like are the server's.

Not covered: quality of answers; starting servers (`python -m evals.studies.peers` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from evals.load.config import BenchConfig
from greenllm.cli.options import with_options
from greenllm.config import load

bench = typer.Typer(name="bench", help="Measure servers.", no_args_is_help=True)


@bench.callback()
def root() -> None:
    """Measure servers."""


@bench.command()
@with_options(BenchConfig, positional="url", environment=False)
def serve(flags: Mapping[str, Any], config: Path | None) -> None:
    """Send requests to a server; print tokens/s, latencies, joules, CPU time and memory."""
    from greenllm.cli.bench_serve import run

    run(load(BenchConfig, flags=flags, file=config))
