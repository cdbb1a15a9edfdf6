"""The runners side by side: speed, joules per token, cached prompts, start, memory.

`python -m evals.studies.runners` starts one real server for each runner and precision, keeps all
of them running, and sends each the same bursts in turn, over HTTP; idle servers take no CPU
time. Joules are what the servers put into `usage.energy`. Peers are in `evals.studies.peers`.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import finish, pick, split_names
from evals.lab import Burst, completion_body, peak_memory_mb, running_server, save, send_burst
from evals.studies.ratios import paired_ratio

console = Console(stderr=True)
ARMS: dict[str, tuple[str, ...]] = {
    "torch float32": ("--runner", "torch"),
    "openvino float32": ("--runner", "openvino"),
    "openvino int8": ("--runner", "openvino", "--quantize", "int8"),
    "openvino int4": ("--runner", "openvino", "--quantize", "int4"),
    "openvino int8 eco": ("--runner", "openvino", "--quantize", "int8", "--threads", "eco"),
    "openvino int8 2 threads": ("--runner", "openvino", "--quantize", "int8", "--threads", "2"),
}
BATCHES = (1, 8, 32)
PROMPT_TOKENS = 32
CACHED_TOKENS = 256
PAUSE_S = 0.05


@dataclass(slots=True)
class Server:
    """A running server and what was seen of it."""

    url: str
    pid: int
    model: str
    start_s: float
    bursts: dict[int, list[Burst]] = field(default_factory=dict)
    cold: list[Burst] = field(default_factory=list)
    cached: list[Burst] = field(default_factory=list)


def _prompt(length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(10, 400) for _ in range(length)]


def turn(server: Server, tokens: int, seeds: itertools.count[int]) -> None:
    """Every batch size once, and one prompt cold and cached."""
    for batch in BATCHES:
        prompts = [_prompt(PROMPT_TOKENS, next(seeds)) for _ in range(batch)]
        bodies = [completion_body(server.model, prompt, tokens) for prompt in prompts]
        server.bursts.setdefault(batch, []).append(send_burst(server.url, server.pid, bodies))
    body = completion_body(server.model, _prompt(CACHED_TOKENS, next(seeds)), 1)
    for kept in (server.cold, server.cached):
        time.sleep(PAUSE_S)
        kept.append(send_burst(server.url, server.pid, [body]))


def _summary(server: Server) -> dict[str, Any]:
    batches = {
        str(batch): {
            "tokens_per_s": statistics.median(b.tokens_per_s for b in bursts),
            "tokens_per_cpu_s": statistics.median(b.tokens_per_cpu_s for b in bursts),
            "active_joules_per_token": statistics.median(
                b.total("active_joules") / b.tokens for b in bursts
            ),
            "joules_per_token": statistics.median(
                b.total("energy_joules") / b.tokens for b in bursts
            ),
        }
        for batch, bursts in server.bursts.items()
    }
    return {
        "start_s": server.start_s,
        "peak_memory_mb": peak_memory_mb(server.pid),
        "batches": batches,
        "cached_over_cold_ttft": paired_ratio(
            [b.wall_s for b in server.cached], [b.wall_s for b in server.cold]
        ),
        "cached_over_cold_prefill_joules": paired_ratio(
            [b.total("prefill_joules") for b in server.cached],
            [b.total("prefill_joules") for b in server.cold],
        ),
    }


def _falls(servers: dict[str, Server]) -> dict[str, Any]:
    """Active joules per token of the torch runner over each other arm's, round by round."""

    def per_token(server: Server, batch: int) -> list[float]:
        return [b.total("active_joules") / b.tokens for b in server.bursts[batch]]

    base = next(iter(servers))
    return {
        name: {
            str(batch): paired_ratio(per_token(servers[base], batch), per_token(server, batch))
            for batch in BATCHES
        }
        for name, server in servers.items()
        if name != base
    }


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    rounds: Annotated[int, typer.Option(help="Rounds of all servers.")] = 5,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    arms: Annotated[str, typer.Option(help="Arms, comma-separated; else all.")] = "",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "runners",
) -> None:
    """Measure the runners, interleaved."""
    chosen = pick(split_names(arms), ARMS, "--arms: no")
    seeds = itertools.count()
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for arm in chosen:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            started_s = time.perf_counter()
            server = running_server(model, Path(folder), *ARMS[arm])
            url, pid = stack.enter_context(server)
            start_s = time.perf_counter() - started_s
            served = "bundled" if model == "bundled" else Path(model).resolve().name
            servers[arm] = Server(url, pid, served, start_s)
            console.print(f"{arm}: ready after {start_s:.1f} s")
        for number in range(rounds):
            for arm in chosen if number % 2 == 0 else reversed(chosen):
                turn(servers[arm], tokens, seeds)
            console.print(f"round {number + 1}/{rounds}")
        figures = {
            "model": Path(model).name,
            "rounds": rounds,
            "tokens": tokens,
            "arms": {arm: _summary(server) for arm, server in servers.items()},
            "torch_over_arm_active_joules_per_token": _falls(servers),
        }
    console.print_json(data=figures)
    console.print(f"written to {save(name, figures, module='runners')}")


if __name__ == "__main__":
    finish("evals.studies.runners", lambda: typer.run(main))
