"""What a fault acts on, and the load that goes on around it: the bystanders.

Contract: bystanders send the questions in turns, each after the answer to the last; what they get
is kept, with that of the clients that a fault sends itself. While a phase lasts they go on; at its
end those that are under way get their answers, so that a reply belongs to one fault.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from evals.chaos.asking import Question, Reply, ask
from evals.chaos.server import ChaosServer
from evals.entry import BenchError
from evals.load.client import session

_PAUSE_S, _PAUSE_AFTER_TROUBLE_S = 0.02, 0.2
_ROUNDS_OF_RECORDING = 2


@dataclass(slots=True)
class Phase:
    """What happened beside one fault; `broken` are promises that the fault itself saw broken."""

    name: str
    began_s: float
    ended_s: float = 0.0
    bystanders: list[tuple[Question, Reply]] = field(default_factory=list)
    others: list[Reply] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def replies(self) -> list[Reply]:
        """All of them."""
        return [*(reply for _, reply in self.bystanders), *self.others]


@dataclass(slots=True)
class World:
    """A server, its questions with their right answers, and what may be chosen at random."""

    server: ChaosServer
    model: str
    right: Mapping[Question, bytes]
    http: aiohttp.ClientSession
    seconds: float
    source: random.Random
    phase: Phase

    async def last(self) -> None:
        """Let the fault last."""
        await asyncio.sleep(self.seconds)

    async def ask(self, question: Question) -> Reply:
        """Ask beside the bystanders."""
        reply = await ask(self.http, self.server.url, question)
        self.phase.others.append(reply)
        return reply

    def promise(self, holds: bool, text: str) -> None:
        """Note a promise that does not hold."""
        if not holds:
            self.phase.broken.append(text)


async def record(
    http: aiohttp.ClientSession, url: str, asked: Sequence[Question]
) -> dict[Question, bytes]:
    """The right answers: each alone, and then all at once, which must say the same.

    A question whose answer depends on what else is in the batch is left out.

    Raises:
        BenchError: one is not answered, or too few are left.
    """
    alone = {question: await _answer(http, url, question) for question in asked}
    changing = set()
    for _ in range(_ROUNDS_OF_RECORDING):
        together = await asyncio.gather(*(_answer(http, url, question) for question in asked))
        changing |= {q for q, answer in zip(asked, together, strict=True) if answer != alone[q]}
    right = {q: answer for q, answer in alone.items() if q not in changing}
    if len(right) < len(asked) / 2:
        raise BenchError("in peace, too: answers depend on what else is in the batch")
    return right


async def _answer(http: aiohttp.ClientSession, url: str, question: Question) -> bytes:
    reply = await ask(http, url, question)
    if reply.answer is None:
        raise BenchError(f"in peace a question is not answered: {reply.trouble}")
    return reply.answer


@asynccontextmanager
async def load(world: World, count: int) -> AsyncIterator[None]:
    """So many bystanders, until the phase ends and their last answers are there."""
    is_over = asyncio.Event()
    asked = list(world.right)

    async def go_on(first: int) -> None:
        number = first
        while not is_over.is_set():
            question = asked[number % len(asked)]
            reply = await ask(world.http, world.server.url, question)
            world.phase.bystanders.append((question, reply))
            await asyncio.sleep(_PAUSE_AFTER_TROUBLE_S if reply.answer is None else _PAUSE_S)
            number += 1

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(go_on(number))
        try:
            yield
        finally:
            is_over.set()
            world.phase.ended_s = time.monotonic()


@asynccontextmanager
async def clients(timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections for bystanders; one that gets no answer within the time says so."""
    async with session(None, timeout_s) as http:
        yield http
