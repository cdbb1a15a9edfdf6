"""The faults, each with what it does and which of its own troubles a client may see.

Contract: an injector does its fault, lets it last and takes it back; after it the server is up. It
notes promises that only it can see broken. What bystanders get is judged elsewhere (`proof`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass

from evals.chaos.asking import CUT, IN_STREAM, UNREACHABLE, Question
from evals.chaos.clients import exchange, hostile, leave_after, question_bytes
from evals.chaos.world import World
from evals.chaos.wrapped import DIES, FAILING_SEED, GARBAGE, RAISES, WORKS
from greenllm.energy.ledger_schema import connect

_ENGINE_FAILED = 2
_BYTE_S = 0.005
_HOG_PROMPTS, _HOG_ANSWERS = 8, 128
_IDLE_CONNECTIONS, _SPARE_DESCRIPTORS = 64, 8


@dataclass(frozen=True, slots=True)
class Fault:
    """See the module.

    Attributes:
        inject: does it.
        permits: troubles that bystanders may have, as `Reply.trouble` names them.
        pauses: whether nobody answers for a while, so that the bound of `/health` does not hold.
    """

    inject: Callable[[World], Awaitable[None]]
    permits: frozenset[str] = frozenset()
    pauses: bool = False


async def _kill(world: World) -> None:
    await world.last()
    world.server.signal(signal.SIGKILL)
    await asyncio.to_thread(world.server.wait)
    await asyncio.to_thread(world.server.start)


async def _sigterm(world: World) -> None:
    await world.last()
    code = await asyncio.to_thread(world.server.stop)
    world.promise(code == 0, f"SIGTERM ends it with 0, not {code}")
    await asyncio.to_thread(world.server.start)


async def _pause(world: World) -> None:
    await asyncio.sleep(world.seconds / 2)
    world.server.signal(signal.SIGSTOP)
    try:
        await world.last()
    finally:
        world.server.signal(signal.SIGCONT)
    await asyncio.sleep(world.seconds / 2)


def _switched(**switches: str | float) -> Callable[[World], Awaitable[None]]:
    """Turn switches of the wrapper for a while."""
    usual = {"sensor": WORKS, "step": WORKS, "clock_s": 0.0}

    async def inject(world: World) -> None:
        await asyncio.to_thread(world.server.tell, **switches)
        try:
            await world.last()
        finally:
            await asyncio.to_thread(world.server.tell, **{name: usual[name] for name in switches})
        await asyncio.sleep(world.seconds / 2)

    return inject


async def _engine_dies(world: World) -> None:
    await asyncio.sleep(world.seconds / 2)
    await asyncio.to_thread(world.server.tell, step=DIES)
    code = await asyncio.to_thread(world.server.wait)
    world.promise(code == _ENGINE_FAILED, f"without its engine it ends with 2, not {code}")
    await asyncio.to_thread(world.server.start)


async def _row_raises(world: World) -> None:
    body = {"model": world.model, "prompt": "a", "max_tokens": 16, "ignore_eos": True}
    question = Question("/v1/completions", {**body, "seed": FAILING_SEED})
    reply = await world.ask(question)
    world.promise(reply.trouble == "500", f"its client gets 500, not {reply.trouble}")
    await world.last()


async def _ledger_locked(world: World) -> None:
    with closing(connect(str(world.server.ledger))) as db:
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        await world.last()
        db.execute("ROLLBACK")
    await asyncio.sleep(world.seconds / 2)


async def _ledger_moved(world: World) -> None:
    await asyncio.sleep(world.seconds / 2)
    world.server.ledger.rename(world.server.aside())
    await world.last()


async def _ledger_garbage(world: World) -> None:
    """Another file in its place; what was written is kept by another name."""
    ledger = world.server.ledger
    await asyncio.sleep(world.seconds / 2)
    os.link(ledger, world.server.aside())
    garbage = ledger.with_name("garbage")
    garbage.write_bytes(world.source.randbytes(100_000))
    garbage.replace(ledger)
    await world.last()
    ledger.unlink()
    await asyncio.sleep(world.seconds / 2)


async def _ledger_overwritten(world: World) -> None:
    """Garbage in the file itself; a copy of what was in it is kept, and the file is taken away."""
    ledger = world.server.ledger
    await asyncio.sleep(world.seconds / 2)
    world.server.signal(signal.SIGSTOP)
    try:
        aside = world.server.aside()
        for ending in ("", "-wal"):
            shutil.copy(
                ledger.with_name(ledger.name + ending), aside.with_name(aside.name + ending)
            )
        with ledger.open("r+b") as file:
            file.write(world.source.randbytes(ledger.stat().st_size))
    finally:
        world.server.signal(signal.SIGCONT)
    await world.last()
    ledger.rename(ledger.with_name("garbage"))
    await asyncio.sleep(world.seconds / 2)


async def _disk_full(world: World) -> None:
    with world.server.limited(resource.RLIMIT_FSIZE, 0):
        await world.last()
    await asyncio.sleep(world.seconds / 2)


async def _descriptors(world: World) -> None:
    most = world.server.num_descriptors() + _SPARE_DESCRIPTORS
    with world.server.limited(resource.RLIMIT_NOFILE, most):
        async with AsyncExitStack() as stack:
            for _ in range(_IDLE_CONNECTIONS):
                _, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
                stack.callback(writer.transport.abort)
            await world.last()
    await asyncio.sleep(world.seconds / 2)


async def _slow_clients(world: World) -> None:
    whole = [question for question in world.right if not question.body.get("stream")]

    async def slowly(question: Question) -> None:
        raw = question_bytes(question)
        reply = await exchange(world.server.port, raw, byte_s=_BYTE_S)
        world.phase.others.append(reply)
        world.promise(
            reply.answer == world.right[question],
            f"a slow client gets the right answer, not {reply.trouble or 'another'}",
        )

    await asyncio.gather(*map(slowly, whole), world.last())


async def _vanishing_clients(world: World) -> None:
    end_s = asyncio.get_running_loop().time() + world.seconds
    asked = [*world.right, *(long_question(world, is_streamed) for is_streamed in (True, False))]
    while asyncio.get_running_loop().time() < end_s:
        seconds = 0.003 * 100 ** world.source.random()
        question = world.source.choice(asked)
        reply = await leave_after(world.http, world.server.url, question, seconds)
        world.phase.others.append(reply)


def long_question(world: World, is_streamed: bool, **more: object) -> Question:
    """One whose answer takes long, and whose id comes at once if it is streamed."""
    body = {"model": world.model, "prompt": "Once", "max_tokens": 400, "ignore_eos": True}
    return Question("/v1/completions", {**body, "stream": is_streamed, **more})


async def _hog(world: World) -> None:
    prompts = [f"Story {number} of" for number in range(_HOG_PROMPTS)]
    question = long_question(world, True, prompt=prompts, n=_HOG_ANSWERS)
    reply = await leave_after(world.http, world.server.url, question, world.seconds)
    world.phase.others.append(reply)
    world.promise(reply.status in (200, 429), f"a hog is served or refused, not {reply.status}")


async def _hostile_bodies(world: World) -> None:
    for name, raw in hostile(world.model):
        reply = await exchange(world.server.port, raw)
        world.phase.others.append(reply)
        is_refused = reply.status is None or 400 <= reply.status < 500
        if name == "more than it says":
            is_refused = is_refused or reply.status == 200
        is_over = reply.trouble != "no end"
        world.promise(is_refused and is_over, f"{name}: refused, not {reply.trouble or 200}")
    await world.last()


_GONE = frozenset({UNREACHABLE, CUT, IN_STREAM, "503"})
FAULTS: Mapping[str, Fault] = {
    "calm": Fault(lambda world: world.last()),
    "kill": Fault(_kill, _GONE, pauses=True),
    "sigterm": Fault(_sigterm, frozenset({UNREACHABLE, "503"}), pauses=True),
    "pause": Fault(_pause, pauses=True),
    "sensor-raises": Fault(_switched(sensor=RAISES)),
    "sensor-garbage": Fault(_switched(sensor=GARBAGE)),
    "ledger-locked": Fault(_ledger_locked),
    "ledger-moved": Fault(_ledger_moved),
    "ledger-garbage": Fault(_ledger_garbage),
    "ledger-overwritten": Fault(_ledger_overwritten),
    "disk-full": Fault(_disk_full),
    "descriptors": Fault(_descriptors, frozenset({UNREACHABLE})),
    "clock-ahead": Fault(_switched(clock_s=3600.0)),
    "clock-back": Fault(_switched(clock_s=-3600.0)),
    "step-raises": Fault(_switched(step=RAISES), frozenset({"500", IN_STREAM})),
    "row-raises": Fault(_row_raises),
    "engine-dies": Fault(_engine_dies, _GONE | {"500"}, pauses=True),
    "slow-clients": Fault(_slow_clients),
    "vanishing-clients": Fault(_vanishing_clients),
    "hog": Fault(_hog),
    "hostile-bodies": Fault(_hostile_bodies),
}
