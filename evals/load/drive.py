"""Runs a load against a target: a closed loop of so many at once, or an open loop of arrivals.

Contract: every shot ends as an `Answer`. A closed loop keeps `concurrency` requests in flight until
its shots or its time are used up, and lets those in flight end. An open loop sends each shot at its
time whatever the server does; beyond `MAX_IN_FLIGHT` it stops sending and says so. While a load
runs, the server's processes are looked at from outside, if there is a process to look at.

Not covered: several client processes; ramps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

import aiohttp

from evals.load.client import LoadTarget, session, shoot
from evals.load.figures import LoadAnswer, Summary, rate, summarize
from evals.load.plan import Shot
from evals.load.processes import ProcessError, TreeClock, all_stats, memory_of

LOOK_EVERY_S = 1.0
MAX_IN_FLIGHT = 1024


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What the server's process tree took during a load."""

    pid: int
    cpu_s: float
    peak_bytes: int
    memory_kind: str
    processes: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A load's figures, with what server and client took; None where nobody looked."""

    name: str
    summary: Summary
    footprint: ProcessUsage | None
    tokens_per_cpu_s: float | None
    client_cpu_s: float


@dataclass(slots=True)
class Watch:
    """Looks at a process tree now and then."""

    pid: int
    clock: TreeClock = field(init=False)
    start_s: float = field(init=False)
    cpu_s: float = 0.0
    peak_bytes: int = 0
    memory_kind: str = "pss"
    processes: int = 0

    def __post_init__(self) -> None:
        self.clock = TreeClock(self.pid)
        stats = all_stats()
        if all(stat.pid != self.pid for stat in stats):
            raise ProcessError(f"there is no process {self.pid}")
        self.start_s = self.clock.look(stats)
        self.look()

    def look(self) -> None:
        """Read CPU time and memory."""
        self.cpu_s = max(self.cpu_s, self.clock.look(all_stats()) - self.start_s)
        pids = [pid for pid, _ in self.clock.known]
        size, kind = memory_of(pids)
        if kind == "rss":
            self.memory_kind = kind
        self.peak_bytes = max(self.peak_bytes, size)
        self.processes = max(self.processes, len(pids))

    def footprint(self) -> ProcessUsage:
        """Everything until now."""
        self.look()
        return ProcessUsage(self.pid, self.cpu_s, self.peak_bytes, self.memory_kind, self.processes)


@asynccontextmanager
async def watching(pid: int | None) -> AsyncIterator[Watch | None]:
    """A watch that looks every second while a load runs."""
    if pid is None:
        yield None
        return
    watch = Watch(pid)

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            watch.look()

    task = asyncio.create_task(keep_looking())
    try:
        yield watch
    finally:
        task.cancel()


async def closed_loop(
    target: LoadTarget, shots: Iterable[Shot], concurrency: int, *, duration_s: float | None = None
) -> list[LoadAnswer]:
    """Keep `concurrency` requests in flight; start none after `duration_s`."""
    pending, answers = iter(shots), list[LoadAnswer]()
    until_s = None if duration_s is None else time.monotonic() + duration_s
    async with session(target.api_key, target.timeout_s) as http, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_worker(http, target, pending, answers, until_s))
    return answers


async def _worker(
    http: aiohttp.ClientSession,
    target: LoadTarget,
    pending: Iterator[Shot],
    answers: list[LoadAnswer],
    until_s: float | None,
) -> None:
    for shot in pending:
        answers.append(await shoot(http, target, shot, 0.0))
        if until_s is not None and time.monotonic() >= until_s:
            return
        if answers[-1].failure is not None:
            await asyncio.sleep(0.01)  # a server that refuses at once is not hammered


async def open_loop(target: LoadTarget, shots: Sequence[Shot]) -> list[LoadAnswer]:
    """Send each shot at its time."""
    answers, in_flight = list[LoadAnswer](), 0
    start_s = time.monotonic()

    async def one(http: aiohttp.ClientSession, shot: Shot, late_s: float) -> None:
        nonlocal in_flight
        answers.append(await shoot(http, target, shot, late_s))
        in_flight -= 1

    async with session(target.api_key, target.timeout_s) as http, asyncio.TaskGroup() as group:
        for shot in shots:
            await asyncio.sleep(max(0.0, start_s + shot.at_s - time.monotonic()))
            now_s = time.monotonic()
            if in_flight >= MAX_IN_FLIGHT:
                reason = f"not sent: {MAX_IN_FLIGHT} in flight"
                answers.append(LoadAnswer(now_s, now_s, failure=reason))
                continue
            in_flight += 1
            group.create_task(one(http, shot, now_s - start_s - shot.at_s))
    return answers


@dataclass(frozen=True, slots=True)
class Load:
    """A named load: closed with `concurrency`, open without."""

    name: str
    shots: Iterable[Shot]
    concurrency: int | None = None
    requests: int | None = None
    duration_s: float | None = None

    async def send(self, target: LoadTarget) -> list[LoadAnswer]:
        """Send it."""
        if self.concurrency is None:
            return await open_loop(target, list(self.shots))
        shots = islice(self.shots, self.requests)
        return await closed_loop(target, shots, self.concurrency, duration_s=self.duration_s)


async def measure(target: LoadTarget, load: Load, pid: int | None) -> LoadResult:
    """Run a load and sum it up."""
    client_s = time.process_time()
    async with watching(pid) as watch:
        answers = await load.send(target)
        client_s = time.process_time() - client_s
        footprint = watch.footprint() if watch else None
    summary = summarize(answers)
    cpu_s = footprint.cpu_s if footprint else None
    return LoadResult(
        load.name, summary, footprint, rate(summary.completion_tokens, cpu_s), client_s
    )
