"""A peer's server on given cores: what it calls its model tells that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from evals.load.client import NoModelError, TargetError, first_model
from evals.servers import running

START_TIMEOUT_S = 300.0


@contextmanager
def serving(
    command: Sequence[str], environment: Mapping[str, str], port: int, cores: set[int]
) -> Iterator[tuple[str, str, int]]:
    """A server: its URL, the name of its model, its process.

    Raises:
        BenchError: it does not start.
    """
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]
    url = f"http://127.0.0.1:{port}"

    def ready() -> str | None:
        try:
            return asyncio.run(first_model(url, None, timeout_s=5.0))
        except NoModelError:
            return ""
        except TargetError:
            return None

    with running(pinned, ready, environment=environment, start_s=START_TIMEOUT_S) as (name, pid):
        yield url, name, pid
