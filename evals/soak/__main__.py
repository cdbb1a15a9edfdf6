"""Hours of load, and what grows meanwhile: `python -m evals.soak`.

Question: does a server take more and more, the longer it serves? Arrivals and lengths of a trace
go to a server of its own, beside adapters that come and go, clients that leave, and a fine-tuning
job. Measure: memory, threads, descriptors and children of its process and the size of its ledger,
every few seconds; how fast each grows in the second half. Exit code 1 if memory grows faster than
the bound, 2 if the server does not live to the end.

Not covered: the memory of training; GPUs; several servers.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.load.client import LoadTarget, session
from evals.soak.activity import Activity, Tally, write_adapters
from evals.soak.arrivals import trace_of
from evals.soak.report import MEMORY, STUDY, figures_of, hours_of, slopes_of
from evals.soak.sampling import Sample, watch
from evals.studies import study
from evals.studies.load import Server, serve
from evals.studies.placement.trace import Arrival

_TIMEOUT_S = 300.0
_SEED = 0
_ADAPTER_CHANGES, _LEAST_BETWEEN_ADAPTERS_S = 360, 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to the server."""

    minutes: float
    every_s: float
    job_steps: int
    adapters: Sequence[Path]
    arrivals: Sequence[Arrival]

    @property
    def adapters_every_s(self) -> float:
        """Seconds between two adapters: so that there are as many in a run of any length."""
        return max(_LEAST_BETWEEN_ADAPTERS_S, 60 * self.minutes / _ADAPTER_CHANGES)


async def soak(plan: Plan, server: Server) -> tuple[list[Sample], Tally]:
    """Load the server for as long as the plan says, and look at it meanwhile."""
    samples: list[Sample] = []
    target = LoadTarget(server.url, server.model, timeout_s=_TIMEOUT_S, seed=_SEED)
    async with session(None, _TIMEOUT_S) as http:
        activity = Activity(http, target, random.Random(_SEED))
        beside = [
            watch(server.pid, server.folder / "ledger.sqlite", plan.every_s, samples),
            activity.change_adapters(plan.adapters, plan.adapters_every_s),
        ]
        if plan.job_steps:
            beside.append(activity.train(plan.job_steps))
        await _until_over(activity.send(plan.arrivals), beside, plan.minutes)
    return samples, activity.tally


async def _until_over(
    sending: Coroutine[Any, Any, None], beside: Sequence[Coroutine[Any, Any, None]], minutes: float
) -> None:
    """Send, and end what goes on beside it; what fails there ends all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in beside]
        await asyncio.gather(sending, asyncio.sleep(60 * minutes))
        for task in tasks:
            task.cancel()


def main(
    minutes: Annotated[float, typer.Option(help="Minutes of load.")] = 60.0,
    rate_scale: Annotated[float, typer.Option(help="So many times the trace's rate.")] = 1.0,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of TIMESTAMP,ContextTokens,GeneratedTokens; else made up."),
    ] = None,
    max_context: Annotated[int, typer.Option(help="Lengths shrink to fit this.")] = 1024,
    every_s: Annotated[float, typer.Option(help="Seconds between two samples.")] = 5.0,
    bound_mb_per_hour: Annotated[
        float, typer.Option(help="Growth of memory in the second half, at most.")
    ] = 10.0,
    job_steps: Annotated[int, typer.Option(help="Steps of the fine-tuning job; 0 for none.")] = 50,
    model: study.Model = "bundled",
    output: study.Output = study.RESULTS,
) -> None:
    """Load a server for long, and see what grows."""
    found, factor = trace_of(trace, max_context, _SEED)
    arrivals = found.arrivals(rate_scale, 60 * minutes, _SEED)
    with tempfile.TemporaryDirectory() as folder:
        lora = Path(folder) / "lora"
        adapters = write_adapters(model, lora)
        plan = Plan(minutes, every_s, job_steps, adapters, arrivals)
        options = ("--adapter-dirs", str(lora))
        with serve(model, *options, folder=Path(folder) / "data") as server:
            own_name = server.model
            samples, tally = asyncio.run(soak(plan, server))
    hours, figures = hours_of(samples), figures_of(samples)
    slopes = slopes_of(hours, figures)
    broken = _broken(slopes[MEMORY]["slope"], bound_mb_per_hour)
    result = {
        **{"model": own_name, "minutes": minutes, "rate_scale": rate_scale},
        **{"trace": found.name, "length_factor": factor, "bound_mb_per_hour": bound_mb_per_hour},
        **{"requests": asdict(tally), "slopes": slopes, "broken": broken},
        **{"hours": hours, "samples": figures},
    }
    STUDY.report(result, folder=output)
    if broken:
        sys.exit(1)


def _broken(slope: float | None, bound: float) -> list[str]:
    if slope is None:
        return ["memory does not grow: there are too few samples to tell"]
    if slope > bound:
        return [f"memory grows by at most {bound:g} MB per hour: it was {slope:.1f}"]
    return []


if __name__ == "__main__":
    STUDY.run(main)
