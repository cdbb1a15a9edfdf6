"""What an idle server costs: `python -m evals.studies.idle`.

Question: does a server without requests let the processor sleep? An engine thread that spins would
show. Arms: a server that was never used, and the same one after it has served some. Measure: CPU
time of its process over a while, seen from outside.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.progress import track

from evals.studies import study
from evals.studies.load import CHATS, Server, chat_body, serve

STUDY = study.Study("idle")
_REQUESTS, _TOKENS = 8, 32


def idle_share(server: Server, duration_s: int, label: str) -> float:
    """CPU seconds per second without requests, as a fraction of one core."""
    before_s, started_s = server.cpu_s(), time.monotonic()
    for _ in track(range(duration_s), description=label, console=study.console):
        time.sleep(1)
    return (server.cpu_s() - before_s) / (time.monotonic() - started_s)


def main(
    seconds: Annotated[int, typer.Option(help="Seconds to watch, twice.")] = 60,
    model: study.Model = "bundled",
) -> None:
    """Measure the CPU time of an idle server."""
    with serve(model) as server:
        fresh = idle_share(server, seconds, "never used")
        server.burst([chat_body(server.model, _TOKENS)] * _REQUESTS, path=CHATS)
        used = idle_share(server, seconds, "after requests")
    STUDY.report({"seconds": seconds, "fresh_core_share": fresh, "used_core_share": used})


if __name__ == "__main__":
    STUDY.run(main)
