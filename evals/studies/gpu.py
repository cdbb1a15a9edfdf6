"""A server on an NVIDIA board, with the joules the board counts: `python -m evals.studies.gpu`.

A real server for each arm, a precision, all of them on one board; the same bursts to each, batch by
batch, in turns. Joules are what the servers put into `usage.energy`, the board's part and the
processor's apart: the first is measured, the second mostly modelled. This process reads NVML's
counter as well, around every burst and by itself, so that a server's sums have something to be held
against that they were not made of. The board's own draw at rest is on whoever answers; the figure
without it is beside it.

Bursts that end within two updates of the counter (0.1 s) are repeated until they do not.

Not covered: other servers on a board, several boards, power limits and clocks (they are left as
they are found, and written down).
"""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import BenchError, finish, pick, split_names
from evals.lab import RESULTS, Burst, joined, random_bodies, running_server, save, send_burst
from evals.studies.gpu_report import markdown
from evals.studies.ratios import paired_ratio
from greenllm.energy.meters.nvml import NvmlMeter, load_nvml
from greenllm.energy.meters.protocol import Meter
from greenllm.model.options import own_name

console = Console(stderr=True)
ARMS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("--dtype", "bfloat16"),
    "bfloat16 eager": ("--dtype", "bfloat16", "--eager"),
    "float32": ("--dtype", "float32"),
    "int8": ("--quantize", "int8", "--dtype", "float16"),
    "nf4": ("--quantize", "nf4", "--dtype", "bfloat16"),
}
_BOARD_FACTS = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw,temperature.gpu"
)
# The counter moves every 0.1 s, so that a burst of a second is known to within a fifth.
LEAST_S = 2.0


@dataclass(slots=True)
class Cell:
    """One arm at one batch size, round by round: bursts, and the board's joules around each."""

    bursts: list[Burst] = field(default_factory=list)
    counted_j: list[float] = field(default_factory=list)

    def per_token(self, domain: str) -> list[float]:
        """Joules of a domain per generated token, idle share included."""
        return [_domain_j(burst, domain) / burst.tokens for burst in self.bursts]

    def summary(self) -> dict[str, Any]:
        """Medians over rounds."""
        bursts = self.bursts
        own = [_domain_j(burst, "gpu") for burst in bursts]
        return {
            "tokens_per_s": statistics.median(burst.tokens_per_s for burst in bursts),
            "gpu_joules_per_token": statistics.median(self.per_token("gpu")),
            "cpu_joules_per_token": statistics.median(self.per_token("cpu")),
            "active_joules_per_token": statistics.median(
                burst.total("active_joules") / burst.tokens for burst in bursts
            ),
            "receipts_over_counter": paired_ratio(own, self.counted_j),
            "board_w": statistics.median(
                counted_j / burst.wall_s
                for counted_j, burst in zip(self.counted_j, bursts, strict=True)
            ),
        }


def _domain_j(burst: Burst, domain: str) -> float:
    return sum(float(body["usage"]["energy"]["domains_joules"][domain]) for body in burst.bodies)


def board() -> dict[str, str]:
    """Name, driver, clocks and limits of the first board, as `nvidia-smi` says them.

    Raises:
        BenchError: it cannot be asked.
    """
    command = ["nvidia-smi", f"--query-gpu={_BOARD_FACTS}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"no NVIDIA board can be asked: {error}") from error
    values = [value.strip() for value in said.stdout.strip().split(",")]
    return dict(zip(_BOARD_FACTS.split(","), values, strict=True))


def idle_w(meter: Meter, seconds: float) -> float:
    """Watts of the board while nothing is asked."""
    first = meter.read()
    time.sleep(seconds)
    last = meter.read()
    return (last.joules["gpu"] - first.joules["gpu"]) / (last.at_s - first.at_s)


@dataclass(frozen=True, slots=True)
class Asking:
    """What every burst asks, and the counter that is read around it."""

    model: str
    tokens: int
    meter: Meter
    seeds: Iterator[int]

    def burst(self, server: tuple[str, int], batch: int) -> tuple[Burst, float]:
        """Bursts until they have lasted, and what the board's counter moved by around them."""
        parts: list[Burst] = []
        before_j = self.meter.read().joules["gpu"]
        while sum(part.wall_s for part in parts) < LEAST_S:
            source = random.Random(next(self.seeds))
            asked = random_bodies(self.model, batch, self.tokens, source)
            parts.append(send_burst(*server, asked))
        return joined(parts), self.meter.read().joules["gpu"] - before_j


def one_round(
    asking: Asking,
    servers: Mapping[str, tuple[str, int]],
    sizes: Sequence[int],
    cells: dict[tuple[str, int], Cell],
) -> None:
    """Every batch size and arm once."""
    for batch in sizes:
        for arm, server in servers.items():
            burst, counted_j = asking.burst(server, batch)
            cell = cells.setdefault((arm, batch), Cell())
            cell.bursts.append(burst)
            cell.counted_j.append(counted_j)


def figures(cells: dict[tuple[str, int], Cell]) -> dict[str, Any]:
    """Every cell, beside the first arm at its batch size."""
    found: dict[str, Any] = {}
    first = next(iter(cells))[0]
    for (arm, batch), cell in cells.items():
        plain = cells[first, batch]
        found.setdefault(arm, {})[str(batch)] = {
            **cell.summary(),
            "gpu_joules_over_first": paired_ratio(cell.per_token("gpu"), plain.per_token("gpu")),
        }
    return found


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    arms: Annotated[str, typer.Option(help="Precisions, comma-separated; else all.")] = "",
    batches: Annotated[str, typer.Option(help="Requests in flight.")] = "1,8,32,128",
    rounds: Annotated[int, typer.Option(help="Rounds of all arms.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "gpu",
) -> None:
    """Measure precisions on a GPU, interleaved."""
    chosen = pick(split_names(arms), ARMS, "--arms: no")
    sizes = [int(size) for size in batches.split(",")]
    facts, meter = board(), NvmlMeter(load_nvml())
    resting_w = idle_w(meter, 5.0)
    asking = Asking(own_name(model), tokens, meter, itertools.count())
    cells: dict[tuple[str, int], Cell] = {}
    with ExitStack() as stack:
        servers: dict[str, tuple[str, int]] = {}
        for arm in chosen:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = [*ARMS[arm], "--device", "cuda", "--max-num-seqs", str(max(sizes))]
            options += ["--threads", "1", "--no-prefix-cache"]
            servers[arm] = stack.enter_context(running_server(model, folder, *options))
        about = {"model": asking.model, "board": facts, "tokens": tokens}
        about |= {"resting_w": resting_w, "loaded_w": idle_w(meter, 5.0)}
        one_round(asking, servers, sizes, {})  # graphs are recorded, kernels are chosen
        for number in range(rounds):
            # Arms change places from round to round.
            order = {arm: servers[arm] for arm in sorted(chosen, reverse=number % 2 == 1)}
            one_round(asking, order, sizes, cells)
            ordered = {(arm, batch): cells[arm, batch] for arm in chosen for batch in sizes}
            result = {**about, "rounds": number + 1, "arms": figures(ordered)}
            path = save(name, result, module="gpu")
            (RESULTS / f"{name}.md").write_text(markdown(result), encoding="utf-8")
            console.print(f"round {number + 1}/{rounds} is in {path}")
    console.print(markdown(result))


if __name__ == "__main__":
    finish("evals.studies.gpu", lambda: typer.run(main))
