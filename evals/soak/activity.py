"""What is asked of the server meanwhile: requests of a trace, adapters that come and go, one job.

Contract: each arrival is sent at its time; beyond `MOST_IN_FLIGHT` it is counted as not sent. Some
clients leave before their answer is whole, some ask an adapter. What failed is counted by its
reason. A job that has not ended by the end is left to the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from evals.entry import BenchError
from evals.load.client import LoadTarget, shoot
from evals.load.plan import Shot
from evals.studies.adapters import write_adapter
from evals.studies.placement.trace import Arrival
from evals.tasks.generated.tasks import training_examples
from greenllm.model.options import LoadOptions
from greenllm.model.targets import targets_of

MOST_IN_FLIGHT = 256
_LEAVES, _ASKS_AN_ADAPTER = 0.05, 0.2
_ADAPTERS, _EXAMPLES, _LOOK_EVERY_S = 4, 64, 0.5
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(slots=True)
class Tally:
    """How requests ended, and what else was done."""

    answered: int = 0
    left: int = 0
    not_sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    adapters_loaded: int = 0
    job: str = "none"


@dataclass(slots=True)
class Activity:
    """See the module; `target` is the server."""

    http: aiohttp.ClientSession
    target: LoadTarget
    source: random.Random
    tally: Tally = field(default_factory=Tally)
    adapters: list[str] = field(default_factory=list)
    in_flight: int = 0

    async def send(self, arrivals: Iterable[Arrival]) -> None:
        """Send each arrival at its time, and wait for the last answers."""
        start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, one in enumerate(arrivals):
                await asyncio.sleep(max(0.0, start_s + one.at_s - time.monotonic()))
                if self.in_flight >= MOST_IN_FLIGHT:
                    self.tally.not_sent += 1
                    continue
                self.in_flight += 1
                group.create_task(self._shoot(Shot(number, one.prompt_tokens, one.tokens)))

    async def _shoot(self, shot: Shot) -> None:
        target, leave_s = self.target, None
        if self.adapters and self.source.random() < _ASKS_AN_ADAPTER:
            target = replace(target, model=self.source.choice(self.adapters))
        if self.source.random() < _LEAVES:
            leave_s = 0.01 * 100 ** self.source.random()
        try:
            async with asyncio.timeout(leave_s):
                answer = await shoot(self.http, target, shot, 0.0)
        except TimeoutError:
            self.tally.left += 1
            return
        finally:
            self.in_flight -= 1
        if answer.failure is None:
            self.tally.answered += 1
        else:
            self.tally.failures[answer.failure.partition(":")[0]] += 1

    async def change_adapters(self, folders: Sequence[Path], every_s: float) -> None:
        """Load one after the other and unload the oldest, until it is cancelled."""
        for folder in itertools.cycle(folders):
            if len(self.adapters) >= len(folders) / 2:
                await self._post("/v1/unload_lora_adapter", {"lora_name": self.adapters.pop(0)})
            body = {"lora_name": folder.name, "lora_path": str(folder)}
            await self._post("/v1/load_lora_adapter", body)
            self.adapters.append(folder.name)
            self.tally.adapters_loaded += 1
            await asyncio.sleep(every_s)

    async def train(self, steps: int) -> None:
        """Run a fine-tuning job to its end."""
        form = aiohttp.FormData({"purpose": "fine-tune"})
        form.add_field("file", _examples(), filename="soak.jsonl")
        async with self.http.post(f"{self.target.url}/v1/files", data=form) as response:
            file_id = (await _checked(response))["id"]
        recipe = {"steps": steps, "answers": 0}
        body = {"model": self.target.model, "training_file": file_id, "recipe": recipe}
        job = await self._post("/v1/fine_tuning/jobs", body)
        path = f"{self.target.url}/v1/fine_tuning/jobs/{job['id']}"
        self.tally.job = job["status"]
        while self.tally.job not in _ENDS:
            await asyncio.sleep(_LOOK_EVERY_S)
            async with self.http.get(path) as response:
                self.tally.job = (await _checked(response))["status"]

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with self.http.post(f"{self.target.url}{path}", json=body) as response:
            return await _checked(response)


async def _checked(response: aiohttp.ClientResponse) -> Any:
    if response.status != 200:
        text = await response.text()
        raise BenchError(f"{response.url.path} answered {response.status}: {text}")
    return await response.json()


def write_adapters(model: str, folder: Path) -> list[Path]:
    """A few random adapters."""
    targets = dict(targets_of(model, LoadOptions()))
    folders = [folder / f"soak-{number}" for number in range(_ADAPTERS)]
    for number, one in enumerate(folders):
        write_adapter(one, targets, number)
    return folders


def _examples() -> bytes:
    """Conversations in the layout of fine-tuning files."""
    examples = itertools.islice(training_examples(0), _EXAMPLES)
    lines = (
        json.dumps({"messages": [{"role": m.role, "content": m.content} for m in one.messages]})
        for one in examples
    )
    return "\n".join(lines).encode()
