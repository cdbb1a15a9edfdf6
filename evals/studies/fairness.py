"""How long others wait beside a client that asks for much: `python -m evals.studies.fairness`.

Question: how much later does a short request get its first token? Arms: alone; beside one request
of many sequences; beside many requests of one other key. Each arm's hog is at work before the
request comes, and until it is answered. Measure: time to the first token of the stream, and to the
last, by the client's clock; in turns on one server.

Not covered: clients that send from many keys.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer

from evals.studies import study
from evals.studies.load import COMPLETIONS, Body, Server, random_bodies, serve
from evals.tables import Column, table, text

ARMS = ("alone", "beside one request", "beside many requests")
HOG, OTHER = "hog-0123456789abcdef", "other-0123456789abcdef"
_HOG_IS_AT_WORK_S = 3.0
_PROMPTS, _ANSWERS = 8, 128
_REQUESTS = 256
_ENDLESS_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds until the first and the last token."""

    first_s: float
    last_s: float


def hog_bodies(arm: str, model: str, source: random.Random) -> list[Body]:
    """What the hog of an arm asks for: 1,024 sequences at once, or as many requests as it may."""
    if arm == ARMS[0]:
        return []
    count = _REQUESTS if arm == ARMS[2] else _PROMPTS
    bodies = random_bodies(model, count, _ENDLESS_TOKENS, source)
    if arm == ARMS[2]:
        return bodies
    return [{**bodies[0], "prompt": [body["prompt"] for body in bodies], "n": _ANSWERS}]


async def wait_beside(server: Server, hog: Sequence[Body], body: Body) -> Waits:
    """Ask beside a hog, whose requests are broken off afterwards."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        posts = [_post(http, one) for one in hog]
        tasks = [asyncio.create_task(post) for post in posts]
        await asyncio.sleep(_HOG_IS_AT_WORK_S if tasks else 0.0)
        try:
            return await _stream(http, body)
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


async def _post(http: httpx.AsyncClient, body: Body) -> None:
    await http.post(COMPLETIONS, json=body, headers=_key(HOG))


async def _stream(http: httpx.AsyncClient, body: Body) -> Waits:
    began_s, first_s = time.perf_counter(), 0.0
    asked = http.stream("POST", COMPLETIONS, json={**body, "stream": True}, headers=_key(OTHER))
    async with asked as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and not first_s:
                first_s = time.perf_counter() - began_s
    return Waits(first_s, time.perf_counter() - began_s)


def _key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def row_of(waits: Sequence[Waits]) -> dict[str, float]:
    """Medians and the worst of an arm."""
    firsts = [wait.first_s for wait in waits]
    return {
        "first_s": statistics.median(firsts),
        "worst_first_s": max(firsts),
        "last_s": statistics.median(wait.last_s for wait in waits),
    }


def page(result: study.Result) -> str:
    """A row for each arm."""
    alone = result["rows"][ARMS[0]]
    columns: Mapping[str, Column] = {
        "request": lambda row: str(row["arm"]),
        "first token, s": lambda row: text(row["first_s"]),
        "worst": lambda row: text(row["worst_first_s"]),
        "x alone": lambda row: text(row["first_s"] / alone["first_s"]),
        "last token, s": lambda row: text(row["last_s"]),
    }
    rows = [{"arm": arm, **result["rows"][arm]} for arm in ARMS]
    return f"{table(columns, rows)}\n"


STUDY = study.Study("fairness", page=page)


def main(
    rounds: study.Rounds = 9,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the other's prompt.")] = 256,
    tokens: study.Tokens = 16,
    threads: study.Threads = 2,
    model: study.Model = "bundled",
    name: study.Name = STUDY.name,
) -> None:
    """Measure how long a short request waits beside a hog."""
    options = ["--threads", str(threads), "--no-prefix-cache", "--api-keys", f"{HOG},{OTHER}"]
    source = random.Random(5)
    with serve(model, *options) as server:

        def turn(arm: str, _: int) -> Waits:
            hog = hog_bodies(arm, server.model, source)
            (body,) = random_bodies(server.model, 1, tokens, source, prompt_tokens=prompt_tokens)
            return asyncio.run(wait_beside(server, hog, body))

        taken = study.interleave(turn, rounds, list(ARMS), warm_up=True)
    rows: dict[str, Any] = {arm: row_of(waits) for arm, waits in taken.items()}
    STUDY.report({"rounds": rounds, "rows": rows}, name)


if __name__ == "__main__":
    STUDY.run(main)
