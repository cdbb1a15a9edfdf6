"""Servers of the product for studies, and requests that are sent to them at once.

All are greedy and of a fixed length, so that arms do the same work. Joules are what a server puts
into `usage.energy`. Not covered: open loops (`evals.load`), and other programs' servers
(`evals.studies.peers`).
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evals.load.processes import parse_stat
from evals.servers import running_server
from greenllm.core import Request, SamplingParams
from greenllm.model.options import own_name
from greenllm.tokenizer import Tokenizer

PROMPT = "Tell me a story about a brave fox."
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests sent at once: wall and server CPU time, and the body of each answer."""

    wall_s: float
    cpu_s: float
    bodies: list[Body]

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(int(body["usage"]["completion_tokens"]) for body in self.bodies)

    def total(self, name: str) -> float:
        """Sum of one figure of `usage.energy`."""
        return sum(float(body["usage"]["energy"][name]) for body in self.bodies)

    def figures(self) -> dict[str, float]:
        """Speed and joules; `joules_per_token` has the idle share in it."""
        return {
            "tokens_per_s": self.tokens / self.wall_s,
            "tokens_per_cpu_s": self.tokens / self.cpu_s,
            "active_joules_per_token": self.total("active_joules") / self.tokens,
            "joules_per_token": self.total("energy_joules") / self.tokens,
        }


def joined(parts: Sequence[Burst]) -> Burst:
    """Bursts one after the other as one."""
    return Burst(
        sum(part.wall_s for part in parts),
        sum(part.cpu_s for part in parts),
        [body for part in parts for body in part.bodies],
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test; `model` is what requests call it, `folder` its data."""

    url: str
    pid: int
    model: str
    folder: Path
    start_s: float

    def burst(self, bodies: Sequence[Body], *, path: str = COMPLETIONS) -> Burst:
        """Send requests at once and wait for all."""

        async def send() -> Burst:
            async with httpx.AsyncClient(timeout=600, limits=httpx.Limits()) as client:
                # Making a client takes longer than a short answer: the clock starts after it.
                cpu_s, wall_s = self.cpu_s(), time.perf_counter()
                posts = (client.post(f"{self.url}{path}", json=body) for body in bodies)
                answers = await asyncio.gather(*posts)
                wall_s = time.perf_counter() - wall_s
            found = [answer.raise_for_status().json() for answer in answers]
            return Burst(wall_s, self.cpu_s() - cpu_s, found)

        return asyncio.run(send())

    def bursts(self, batch: int, tokens: int, source: random.Random, *, least_s: float) -> Burst:
        """Bursts of different prompts until they have lasted."""
        parts: list[Burst] = []
        while sum(part.wall_s for part in parts) < least_s:
            parts.append(self.burst(random_bodies(self.model, batch, tokens, source)))
        return joined(parts)

    def cpu_s(self) -> float:
        """User and system CPU time so far, from outside."""
        line = Path(f"/proc/{self.pid}/stat").read_text()
        return parse_stat(line, os.sysconf("SC_CLK_TCK")).own_s

    def peak_memory_mb(self) -> float:
        """Largest resident size so far, shared pages included."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(ln.split()[1]) / 1000 for ln in lines if ln.startswith("VmHWM"))


@contextmanager
def serve(
    model: str, *options: str, folder: Path | None = None, tree: Path | None = None
) -> Iterator[Server]:
    """A server with this data folder, or with one for the time being.

    With `tree`, it is the code of another checkout.

    Raises:
        GreenllmError: there is no such model, or the server does not start.
    """
    with ExitStack() as stack:
        data = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        began_s = time.perf_counter()
        url, pid = stack.enter_context(running_server(model, data, *options, tree=tree))
        yield Server(url, pid, own_name(model), data, time.perf_counter() - began_s)


@contextmanager
def serve_all(
    model: str, arms: Mapping[str, Sequence[str]], *options: str
) -> Iterator[dict[str, Server]]:
    """A server for each arm's options, with those that all have; idle ones take no CPU time."""
    with ExitStack() as stack:
        yield {arm: stack.enter_context(serve(model, *own, *options)) for arm, own in arms.items()}


def completion_body(model: str, prompt: Sequence[int], max_tokens: int) -> Body:
    """A completion of token ids."""
    return {**_greedy(model, max_tokens), "prompt": list(prompt)}


def chat_body(model: str, max_tokens: int) -> Body:
    """The turn of `story_request` over HTTP."""
    return {**_greedy(model, max_tokens), "messages": [{"role": "user", "content": PROMPT}]}


def _greedy(model: str, max_tokens: int) -> Body:
    return {"model": model, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}


def random_prompt(length: int, source: random.Random) -> list[int]:
    """Token ids."""
    return [source.randrange(10, 400) for _ in range(length)]


def random_bodies(
    model: str, batch: int, max_tokens: int, source: random.Random, *, prompt_tokens: int = 64
) -> list[Body]:
    """So many completions of different prompts."""
    prompts = [random_prompt(prompt_tokens, source) for _ in range(batch)]
    return [completion_body(model, prompt, max_tokens) for prompt in prompts]


def story_request(tokenizer: Tokenizer, request_id: str, max_tokens: int) -> Request:
    """A chat turn for an engine in this process."""
    messages = [{"role": "user", "content": PROMPT}]
    prompt = tuple(tokenizer.chat_ids(messages, add_generation_prompt=True))
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id, (prompt,), sampling, model="bench", created_s=time.time())
