"""One server, one replica and two, and one killed at work: `python -m evals.studies.replicas`.

Three real servers: `greenllm serve` as it is, and behind Ray Serve with one and with two replicas,
each of one CPU. Bursts of requests to each in turn, round by round. Joules of tokens are what the
receipts say. What the front, the keeper and Ray itself use is on no receipt: the CPU time of the
command's whole process tree is taken from the system, and the tree's joules are that time at the
modelled power of a busy vCPU, so that they can be held against the receipts' active joules.

Then one of the two replicas is killed with SIGKILL while it works: how many requests were answered,
what the ledger has of the lost work, and whether its sums hold.

Not covered: several machines; clients that stream (`tests/service/test_replicas.py` has both).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from evals.entry import finish
from evals.lab import Burst, cpu_seconds, joined, random_bodies, running_server, save, send_burst
from evals.studies.ratios import paired_ratio
from greenllm.energy.hardware import read_cpu_info, vcpu_power
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.cputime import CpuClock
from greenllm.model.options import own_name

console = Console(stderr=True)
ARMS: Mapping[str, tuple[str, ...]] = {
    "one server": (),
    "1 replica": ("--replicas", "1"),
    "2 replicas": ("--replicas", "2"),
}
FIRST, KILLED = "one server", "2 replicas"
LEAST_S = 1.5
_TITLE = "ray::ServeReplica:greenllm"


@dataclass(slots=True)
class Cell:
    """One arm at one batch size, round by round."""

    bursts: list[Burst] = field(default_factory=list)
    tree_cpu_s: list[float] = field(default_factory=list)

    def active_j(self) -> list[float]:
        """Active joules of a token, by its receipts."""
        return [burst.total("active_joules") / burst.tokens for burst in self.bursts]

    def tree_j(self, busy_w: float) -> list[float]:
        """Joules of a token, by the CPU time of everything that the command has started."""
        pairs = zip(self.tree_cpu_s, self.bursts, strict=True)
        return [busy_w * cpu_s / burst.tokens for cpu_s, burst in pairs]

    def rates(self) -> list[float]:
        """Tokens per second."""
        return [burst.tokens_per_s for burst in self.bursts]


class Target:
    """A server under test."""

    def __init__(self, url: str, pid: int, folder: Path) -> None:
        self.url, self.pid, self.folder = url, pid, folder
        self.clock = CpuClock(tree_of=pid)

    def burst(self, model: str, batch: int, tokens: int, source: random.Random) -> Cell:
        """Bursts until they have lasted."""
        parts: list[Burst] = []
        before_s = self.clock.read().own_s
        while sum(part.wall_s for part in parts) < LEAST_S:
            parts.append(
                send_burst(self.url, self.pid, random_bodies(model, batch, tokens, source))
            )
        return Cell([joined(parts)], [self.clock.read().own_s - before_s])


def figures(cells: Mapping[tuple[str, int], Cell], busy_w: float) -> dict[str, Any]:
    """Medians, and ratios to the first arm round by round."""
    found: dict[str, Any] = {}
    for (arm, batch), cell in cells.items():
        plain = cells[FIRST, batch]
        found.setdefault(arm, {})[str(batch)] = {
            "tokens_per_s": statistics.median(cell.rates()),
            "active_joules_per_token": statistics.median(cell.active_j()),
            "tree_joules_per_token": statistics.median(cell.tree_j(busy_w)),
            "rate_over_first": paired_ratio(cell.rates(), plain.rates()),
            "active_over_first": paired_ratio(cell.active_j(), plain.active_j()),
            "tree_over_first": paired_ratio(cell.tree_j(busy_w), plain.tree_j(busy_w)),
        }
    return found


def kill_one(target: Target, model: str, batch: int, tokens: int) -> dict[str, Any]:
    """Kill the busiest replica while a burst runs; answers, and the books afterwards."""
    asked = random_bodies(model, batch, tokens, random.Random(7))
    statuses = asyncio.run(_with_a_kill(target, asked))
    time.sleep(5.0)  # until the books of the dead are closed
    with closing(Ledger(target.folder / "ledger.sqlite", read_only=True)) as ledger:
        sessions = ledger.sessions()
        receipts = ledger.receipts()
        gaps_j = [
            abs(ledger.session_sum_j(one.session_id) - one.totals.requests_j) for one in sessions
        ]
    lost = [receipt for receipt in receipts if receipt.outcome == "lost"]
    return {
        "requests": len(asked),
        "answered": sum(status == 200 for status in statuses),
        "lost_receipts": len(lost),
        "lost_tokens": sum(receipt.completion_tokens for receipt in lost),
        "lost_joules": sum(receipt.total_j or 0.0 for receipt in lost),
        "largest_residual": max(one.totals.residual for one in sessions),
        "largest_gap_joules": max(gaps_j),
    }


async def _with_a_kill(target: Target, asked: list[dict[str, Any]]) -> list[int]:
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits()) as client:
        posts = [
            asyncio.create_task(client.post(f"{target.url}/v1/completions", json=body))
            for body in asked
        ]
        await asyncio.sleep(1.5)
        os.kill(busiest(target.pid), signal.SIGKILL)
        return [(await post).status_code for post in posts]


def busiest(root: int) -> int:
    """The replica below a process that has used the most CPU time."""
    found: list[tuple[float, int]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not (folder / "cmdline").read_text().startswith(_TITLE):
                continue
            pid = int(folder.name)
            if root in _ancestors(pid):
                found.append((cpu_seconds(pid), pid))
        except OSError:  # it has just ended
            continue
    return max(found)[1]


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    batches: Annotated[str, typer.Option(help="Requests in flight.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="Rounds of all servers.")] = 5,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    max_num_seqs: Annotated[int, typer.Option(help="Requests that fill a replica.")] = 16,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "replicas",
) -> None:
    """Measure replicas against one server, and a loss."""
    sizes, asked = [int(size) for size in batches.split(",")], own_name(model)
    power = vcpu_power(read_cpu_info())
    cells = {(arm, size): Cell() for arm in ARMS for size in sizes}
    with ExitStack() as stack:
        targets: dict[str, Target] = {}
        for arm, options in ARMS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fixed = ("--threads", "1", "--max-num-seqs", str(max_num_seqs), "--no-prefix-cache")
            server = running_server(model, folder, *fixed, *options)
            targets[arm] = Target(*stack.enter_context(server), folder)
        for number in range(-1, rounds):
            for size in sizes:
                for arm in sorted(targets, reverse=number % 2 == 1):
                    source = random.Random(f"{number} {size}")
                    found = targets[arm].burst(asked, size, tokens, source)
                    if number >= 0:  # the round before the first warms up
                        cells[arm, size].bursts += found.bursts
                        cells[arm, size].tree_cpu_s += found.tree_cpu_s
            console.print(f"round {number + 1}/{rounds}")
        killed = kill_one(targets[KILLED], asked, 2 * max_num_seqs, 400)
    result = {
        "model": asked,
        "tokens": tokens,
        "rounds": rounds,
        "max_num_seqs": max_num_seqs,
        "servers": figures(cells, power.max_w - power.min_w),
        "killed": killed,
    }
    console.print_json(data=result)
    console.print(f"written to {save(name, result)}")


if __name__ == "__main__":
    finish("evals.studies.replicas", lambda: typer.run(main))
