"""What the benchmarks share: an engine in this process, a server in another, rounds, medians.

Rounds of the things compared are interleaved, because machines are noisy; results are medians and
ratios of medians, written with their command and the machine to `evals/studies/results/`.

Not covered: peers (other servers), traces of real arrivals.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the server; read when torch is loaded

import httpx
import torch

from evals.entry import BenchError
from evals.load.processes import parse_stat
from greenllm.config import EngineConfig, load
from greenllm.core import Request, SamplingParams
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.hardware import read_cpu_info
from greenllm.energy.meters.choose import choose_meter
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.files import check_folder
from greenllm.model.info import LoadError
from greenllm.model.options import resolve
from greenllm.runner.base import Runner
from greenllm.runner.registry import load_runner
from greenllm.runner.warmup import plan_threads, warm_up
from greenllm.speculation.speculator import Speculator
from greenllm.tokenizer import Tokenizer, load_tokenizer

RESULTS = Path(__file__).parent / "studies" / "results"
PROMPT = "Tell me a story about a brave fox."
MODEL_HINT = "`python -m evals.studies.peers model` makes .peers/models/m135"


@dataclass(frozen=True, slots=True)
class Bench:
    """A loaded model to build engines on."""

    runner: Runner
    tokenizer: Tokenizer

    def engine(
        self, account: Account, batch: int = 64, speculator: Speculator | None = None
    ) -> NativeEngine:
        """A fresh engine of at most `batch` sequences that shares the runner.

        It has no prefix cache, so that rounds are alike.
        """
        return NativeEngine(
            self.runner,
            account,
            CarbonPolicy(None),
            text_stream=self.tokenizer.stream,
            clock=time.monotonic,
            limits=BatchLimits(max_num_seqs=batch, prefix_cache=False),
            speculator=speculator,
        )

    def account(self, meter: str = "modelled") -> Account:
        """A fresh account, warmed up; the meter is called as for `--meter`."""
        account = Account(choose_meter(meter), self.runner.shape, clock=time.monotonic)
        warm_up(self.runner, account)
        account.start_serving()
        return account


def require_model(model: str) -> None:
    """Refuse a model that is not there, before anything is started.

    Raises:
        LoadError: with what makes the benchmarks' model.
    """
    try:
        check_folder(resolve(model), allow_pickle=False)
    except LoadError as error:
        raise LoadError(f"--model: {error} ({MODEL_HINT})") from error


def load_bench(model: str, threads: int, **flags: str) -> Bench:
    """Load a model as the server would with these flags."""
    require_model(model)
    runner = load_runner(load(EngineConfig, flags={"model": model, **flags}))
    plan_threads(runner, str(threads), threads)
    gc.collect()
    gc.freeze()  # as the server
    return Bench(runner, load_tokenizer(resolve(model)))


def story_request(tokenizer: Tokenizer, request_id: str, max_tokens: int) -> Request:
    """The request all benchmarks send: a chat turn, greedy, of a fixed length."""
    text = tokenizer.chat([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    prompt = tuple(tokenizer.encode(text, add_special_tokens=False))
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id, (prompt,), sampling, model="bench", created_s=time.time())


def chat_body(model: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
    """The same request over HTTP."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


@contextmanager
def running_server(model: str, data_dir: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A real server in its own process: its URL and process id.

    Raises:
        GreenllmError: there is no such model, or the server does not start.
    """
    require_model(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "greenllm", "serve", model, "--port", str(port)]
    command += ["--data-dir", str(data_dir), *options]
    # A file, not a pipe: nobody would read the pipe, and a server that filled it would stand still.
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stderr=said) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process, said)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_ready(
    url: str, process: subprocess.Popen[bytes], said: IO[str], timeout_s: float = 120
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            said.seek(0)
            raise BenchError(f"the server ended: {said.read().strip()}")
        try:
            if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise BenchError("the server did not become ready")


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests sent at once: wall and server CPU time, and the body of each answer."""

    wall_s: float
    cpu_s: float
    bodies: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(int(body["usage"]["completion_tokens"]) for body in self.bodies)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.wall_s

    @property
    def tokens_per_cpu_s(self) -> float:
        """Generated tokens per second of the server's CPU time."""
        return self.tokens / self.cpu_s

    def total(self, name: str) -> float:
        """Sum of one figure of `usage.energy`."""
        return sum(float(body["usage"]["energy"][name]) for body in self.bodies)


def joined(parts: Sequence[Burst]) -> Burst:
    """Bursts one after the other as one."""
    return Burst(
        sum(part.wall_s for part in parts),
        sum(part.cpu_s for part in parts),
        [body for part in parts for body in part.bodies],
    )


def send_burst(
    url: str, pid: int, bodies: Sequence[dict[str, Any]], *, path: str = "/v1/completions"
) -> Burst:
    """Send requests at once and wait for all."""

    async def send() -> Burst:
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits()) as client:
            # Making a client takes longer than a short answer: the clock starts after it.
            cpu_s, wall_s = cpu_seconds(pid), time.perf_counter()
            posts = (client.post(f"{url}{path}", json=body) for body in bodies)
            answers = await asyncio.gather(*posts)
            wall_s = time.perf_counter() - wall_s
        found = [answer.raise_for_status().json() for answer in answers]
        return Burst(wall_s, cpu_seconds(pid) - cpu_s, found)

    return asyncio.run(send())


def completion_body(model: str, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """A greedy completion of a fixed length."""
    return {
        "model": model,
        "prompt": list(prompt),
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }


def random_bodies(
    model: str, batch: int, max_tokens: int, source: random.Random, *, prompt_tokens: int = 64
) -> list[dict[str, Any]]:
    """So many completions of different prompts."""
    prompts = [[source.randrange(10, 400) for _ in range(prompt_tokens)] for _ in range(batch)]
    return [completion_body(model, prompt, max_tokens) for prompt in prompts]


def peak_memory_mb(pid: int) -> float:
    """Largest resident size of a process so far, shared pages included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(ln.split()[1]) / 1000 for ln in lines if ln.startswith("VmHWM"))


def cpu_seconds(pid: int) -> float:
    """User and system CPU time of a process, from outside."""
    line = Path(f"/proc/{pid}/stat").read_text()
    return parse_stat(line, os.sysconf("SC_CLK_TCK")).own_s


def interleave(
    arms: Mapping[str, Callable[[], float]], rounds: int, *, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Run every arm once per round, in turn, changing places every round."""
    results: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        names = sorted(arms, reverse=number % 2 == 1)
        for name in names:
            results[name].append(arms[name]())
            progress(f"round {number + 1}/{rounds} {name}: {results[name][-1]:.1f}")
    return results


def save(name: str, figures: Mapping[str, Any], *, module: str | None = None) -> Path:
    """Write a result with the command and the machine that made it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {
        "command": " ".join(["python", "-m", f"evals.studies.{module or name}", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {read_cpu_info().model_name}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps({**about, **figures}, indent=2) + "\n", encoding="utf-8")
    return path
