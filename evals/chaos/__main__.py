"""Faults into a server under load: `python -m evals.chaos`.

Question: does the server keep its promises (docs/robustness.md) whatever happens to it? A server of
its own is started through a wrapper that can fail on demand, bystanders ask questions whose answers
were recorded in peace, and one fault after another is injected beside them. Measure: what everybody
got, what the ledger says, and how soon `/health` answered. Exit code 1 if a promise was broken.

Not covered: several servers (replicas); faults of two kinds at once.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.chaos.asking import questions
from evals.chaos.faults import FAULTS
from evals.chaos.probe import Prober, probing
from evals.chaos.proof import Books, Outcome, balances, judge, read_books
from evals.chaos.report import STUDY
from evals.chaos.server import ChaosServer, chaos_server
from evals.chaos.world import Phase, World, clients, load, record
from evals.studies import study
from greenllm.model.options import own_name

_PATIENCE_S, _ROWS_PATIENCE_S = 600.0, 120.0
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done; `health_bound_s` of 0 is none."""

    model: str
    faults: Sequence[str]
    seconds_each: float
    seed: int
    bystanders: int
    health_bound_s: float


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Inject all faults of a plan; the result, with what was broken."""
    name, asked = own_name(plan.model), questions(own_name(plan.model))
    async with chaos_server(plan.model, folder) as server, clients(_PATIENCE_S) as http:
        right = await record(http, server.url, asked)
        calm = Phase("recording", time.monotonic())
        source = random.Random(plan.seed)
        world = World(server, name, right, http, plan.seconds_each, source, calm)
        with probing(server.port, folder / "health") as prober:
            outcomes = [await _one(world, plan, fault, prober) for fault in plan.faults]
        code = await asyncio.to_thread(server.stop)
        books = read_books(server.ledgers())
    found = balances(books)
    broken = [f"{one.fault}: {text}" for one in outcomes for text in one.broken]
    broken += [text for balance in found for text in balance.broken]
    broken += [] if code == 0 else [f"it ends with 0 at last, not {code}"]
    return {
        **{"model": name, "seconds_each": plan.seconds_each, "seed": plan.seed},
        **{"bystanders": plan.bystanders, "health_bound_s": plan.health_bound_s},
        **{"questions": len(right), "questions_asked": len(asked)},
        "faults": [asdict(outcome) for outcome in outcomes],
        "sessions": [asdict(balance) for balance in found],
        "broken": broken,
    }


async def _one(world: World, plan: Plan, name: str, prober: Prober) -> Outcome:
    """Inject one fault, see the server well again, and judge."""
    study.console.print(name)
    world.phase = phase = Phase(name, time.monotonic())
    async with load(world, plan.bystanders):
        await FAULTS[name].inject(world)
    await _recover(world)
    books = await _rows_of(phase, world.server)
    health = prober.between(phase.began_s, phase.ended_s)
    return judge(phase, FAULTS[name], world.right, books.rows(), health, plan.health_bound_s)


async def _recover(world: World) -> None:
    """Ask everything once; a server that has ended is started again, which is a broken promise."""
    for question, answer in world.right.items():
        reply = await world.ask(question)
        text = f"afterwards it answers as before, not {reply.trouble or 'something else'}"
        world.promise(reply.answer == answer, text)
        if reply.answer is None and await _has_ended(world.server):
            code = await asyncio.to_thread(world.server.wait)
            world.promise(False, f"the process goes on: it ended with {code}")
            await asyncio.to_thread(world.server.start)


async def _has_ended(server: ChaosServer) -> bool:
    """Whether the process ends soon; an engine that died takes a moment."""
    for _ in range(20):
        if not server.is_running():
            return True
        await asyncio.sleep(_LOOK_EVERY_S)
    return False


async def _rows_of(phase: Phase, server: ChaosServer) -> Books:
    """The ledger, once each accepted request has a row, or when that has taken too long."""
    wanted = {reply.request_id for reply in phase.replies if reply.needs_row}
    end_s = time.monotonic() + _ROWS_PATIENCE_S
    while True:
        books = await asyncio.to_thread(read_books, server.ledgers())
        if wanted <= books.rows().keys() or time.monotonic() > end_s:
            return books
        await asyncio.sleep(_LOOK_EVERY_S)


def main(
    seconds_each: Annotated[float, typer.Option(help="Seconds that each fault lasts.")] = 5.0,
    faults: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(FAULTS)}.")] = "",
    seed: Annotated[int, typer.Option(help="Of what is chosen at random.")] = 0,
    bystanders: Annotated[int, typer.Option(help="Clients that ask all the time.")] = 4,
    health_bound_s: Annotated[
        float, typer.Option(help="Longest answer of /health; 0 for no bound.")
    ] = 0.25,
    model: study.Model = "bundled",
    output: study.Output = study.RESULTS,
    name: study.Name = STUDY.name,
) -> None:
    """Inject faults into a server under load, and prove that it keeps its promises."""
    names = study.pick(study.split_names(faults), FAULTS, "--faults: no fault called")
    plan = Plan(model, names, seconds_each, seed, bystanders, health_bound_s)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(plan, Path(folder)))
    STUDY.report(result, name, folder=output)
    for text in result["broken"]:
        study.console.print(f"broken: {text}")
    if result["broken"]:
        sys.exit(1)


if __name__ == "__main__":
    STUDY.run(main)
