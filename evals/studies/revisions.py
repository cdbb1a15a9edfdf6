"""Whether a change cost speed: `python -m evals.studies.revisions OLD NEW`, two checkouts.

Question: how many tokens does a CPU second give before and after? Arms: servers of both trees, for
each batch size, with the same dependencies. Each burst goes to both in turns, whole answers and
streamed ones. Measure: tokens per CPU second of the server process, which other programs disturb
less than tokens per second.

Not covered: joules (two trees may count them differently), the bare engine
(`evals.studies.overhead`, in each tree).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from evals.studies import study
from evals.studies.load import CHATS, Body, Server, chat_body, serve
from evals.studies.ratios import Figures, medians, over
from evals.tables import Column, table, text

TREES = ("old", "new")
_LEAST_REQUESTS = 8
_SPEED = "tokens_per_cpu_s"


def ask(server: Server, batch: int, tokens: int, *, stream: bool) -> Figures:
    """Send requests, `batch` at a time, and read all that comes."""
    body = chat_body(server.model, tokens) | {"stream": stream}
    count = max(2 * batch, _LEAST_REQUESTS)
    before_s = server.cpu_s()
    asyncio.run(_send(f"{server.url}{CHATS}", body, batch, count))
    return {_SPEED: count * tokens / (server.cpu_s() - before_s)}


async def _send(url: str, body: Body, batch: int, count: int) -> None:
    async with httpx.AsyncClient(timeout=600) as client:

        async def one() -> None:
            async with client.stream("POST", url, json=body) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    pass

        for _ in range(0, count, batch):
            await asyncio.gather(*(one() for _ in range(batch)))


def page(result: study.Result) -> str:
    """A table with a row for each batch size and way of answering."""
    columns: Mapping[str, Column] = {
        "batch": lambda row: str(row["batch"]),
        "answers": lambda row: str(row["answers"]),
        "old, tokens per CPU s": lambda row: text(row["old"], ",.0f"),
        "new": lambda row: text(row["new"], ",.0f"),
        "new over old": lambda row: text(row["ratio"]["median"], ".2f"),
        "quartiles": lambda row: f"{row['ratio']['q1']:.2f} to {row['ratio']['q3']:.2f}",
    }
    return table(columns, result["rows"]) + "\n"


STUDY = study.Study("revisions", page=page)


def measure(
    trees: Sequence[Path], batch: int, rounds: int, options: Sequence[str], **how: Any
) -> Iterator[Mapping[str, Any]]:
    """The rows of one batch size."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serve(how["model"], *options, tree=tree))
            for name, tree in zip(TREES, trees, strict=True)
        }
        for stream in (False, True):

            def turn(tree: str, _: int, *, stream: bool = stream) -> Figures:
                return ask(servers[tree], batch, how["tokens"], stream=stream)

            found = study.interleave(turn, rounds, list(TREES), warm_up=True)
            yield {
                "batch": batch,
                "answers": "streamed" if stream else "whole",
                **{tree: medians(found[tree])[_SPEED] for tree in TREES},
                "ratio": over(found["new"], found["old"], _SPEED),
            }


def main(
    old: Annotated[Path, typer.Argument(help="Checkout of the code before.")],
    new: Annotated[Path, typer.Argument(help="Checkout of the code after.")],
    batches: study.Batches = "1,8,32",
    rounds: study.Rounds = 16,
    tokens: study.Tokens = 64,
    threads: study.Threads = 1,
    model: study.Model = "bundled",
    name: study.Name = STUDY.name,
) -> None:
    """Compare the speed of two checkouts."""
    trees = (old.resolve(strict=True), new.resolve(strict=True))
    rows: list[Mapping[str, Any]] = []
    for batch in map(int, batches.split(",")):
        options = ("--threads", str(threads), "--no-prefix-cache", "--max-num-seqs", str(batch))
        rows += measure(trees, batch, rounds, options, model=model, tokens=tokens)
    STUDY.report({"rounds": rounds, "tokens": tokens, "threads": threads, "rows": rows}, name)


if __name__ == "__main__":
    STUDY.run(main)
