"""One server, one replica and two, and one killed at work: `python -m evals.studies.replicas`.

Question: what does Ray Serve cost, what do two replicas bring, and what is lost with one? Arms:
`greenllm serve` as it is, and behind Ray Serve with one and with two replicas, each of one CPU;
bursts of requests to each in turn. Measure: joules of tokens are what the receipts say. What the
front, the keeper and Ray itself use is on no receipt: the CPU time of the command's whole process
tree is taken from the system, and the tree's joules are that time at the modelled power of a busy
vCPU, so that they can be held against the receipts' active joules.

Then one of the two replicas is killed with SIGKILL while it works: how many requests were answered,
what the ledger has of the lost work, and whether its sums hold.

Not covered: several machines; clients that stream (`tests/service/test_replicas.py` has both).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from evals.load.processes import all_stats, tree_of
from evals.studies import study
from evals.studies.load import COMPLETIONS, Body, Server, random_bodies, serve_all
from evals.studies.ratios import Figures, medians, over
from greenllm.energy.hardware import read_cpu_info, vcpu_power
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.cputime import CpuClock
from greenllm.model.options import own_name

STUDY = study.Study("replicas")
ARMS: Mapping[str, tuple[str, ...]] = {
    "one server": (),
    "1 replica": ("--replicas", "1"),
    "2 replicas": ("--replicas", "2"),
}
FIRST, KILLED = "one server", "2 replicas"
LEAST_S = 1.5
_TITLE = "ray::ServeReplica:greenllm"
_RATIOS = {
    "rate_over_first": "tokens_per_s",
    "active_over_first": "active_joules_per_token",
    "tree_over_first": "tree_joules_per_token",
}


def turn(server: Server, batch: int, tokens: int, source: random.Random) -> Figures:
    """Bursts until they have lasted."""
    power = vcpu_power(read_cpu_info())
    clock = CpuClock(tree_of=server.pid)
    before_s = clock.read().own_s
    burst = server.bursts(batch, tokens, source, least_s=LEAST_S)
    tree_j = (power.max_w - power.min_w) * (clock.read().own_s - before_s)
    return {**burst.figures(), "tree_joules_per_token": tree_j / burst.tokens}


def figures(cells: Mapping[tuple[int, str], Sequence[Figures]]) -> dict[str, Any]:
    """Medians, and ratios to the first arm round by round."""
    found: dict[str, Any] = {arm: {} for arm in ARMS}
    for (batch, arm), cell in cells.items():
        found[arm][str(batch)] = medians(cell, *_RATIOS.values()) | {
            ratio: over(cell, cells[batch, FIRST], name) for ratio, name in _RATIOS.items()
        }
    return found


def kill_one(server: Server, batch: int, tokens: int) -> dict[str, Any]:
    """Kill the busiest replica while a burst runs; answers, and the books afterwards."""
    asked = random_bodies(server.model, batch, tokens, random.Random(7))
    statuses = asyncio.run(_with_a_kill(server, asked))
    time.sleep(5.0)  # until the books of the dead are closed
    with closing(Ledger(server.folder / "ledger.sqlite", read_only=True)) as ledger:
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


async def _with_a_kill(server: Server, asked: Sequence[Body]) -> list[int]:
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits()) as client:
        posts = [
            asyncio.create_task(client.post(f"{server.url}{COMPLETIONS}", json=body))
            for body in asked
        ]
        await asyncio.sleep(1.5)
        os.kill(busiest(server.pid), signal.SIGKILL)
        return [(await post).status_code for post in posts]


def busiest(root: int) -> int:
    """The replica below a process that has used the most CPU time."""
    found = [(stat.own_s, stat.pid) for stat in tree_of(root, all_stats()) if _is_replica(stat.pid)]
    return max(found)[1]


def _is_replica(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith(_TITLE)
    except OSError:  # it has just ended
        return False


def main(
    model: study.Model = "bundled",
    batches: study.Batches = "1,8,32",
    rounds: study.Rounds = 5,
    tokens: study.Tokens = 64,
    max_num_seqs: Annotated[int, typer.Option(help="Requests that fill a replica.")] = 16,
    name: study.Name = STUDY.name,
) -> None:
    """Measure replicas against one server, and a loss."""
    sizes = study.split_numbers(batches, "--batches")
    options = ("--threads", "1", "--max-num-seqs", str(max_num_seqs), "--no-prefix-cache")
    with serve_all(model, ARMS, *options) as servers:

        def ask(key: tuple[int, str], number: int) -> Figures:
            size, arm = key
            return turn(servers[arm], size, tokens, random.Random(f"{number} {size}"))

        groups = ([(size, arm) for arm in ARMS] for size in sizes)
        cells = study.interleave(ask, rounds, *groups, warm_up=True)
        killed = kill_one(servers[KILLED], 2 * max_num_seqs, 400)
    about = {"model": own_name(model), "tokens": tokens, "rounds": rounds}
    about |= {"max_num_seqs": max_num_seqs}
    STUDY.report({**about, "servers": figures(cells), "killed": killed}, name)


if __name__ == "__main__":
    STUDY.run(main)
