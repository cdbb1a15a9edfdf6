"""A server on an NVIDIA board, with the joules the board counts: `python -m evals.studies.gpu`.

Question: what does a token cost on a board, and do receipts say what the board counted? Arms: a
real server for each precision, all of them on one board, with the same bursts, batch by batch, in
turns. Measure: joules that the servers put into `usage.energy`, the board's part and the
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
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from evals.entry import BenchError
from evals.studies import study
from evals.studies.load import Burst, Server, serve_all
from evals.studies.ratios import Figures, column, medians, over, paired_ratio
from evals.tables import ratio, rows_of, table, value
from greenllm.energy.meters.nvml import NvmlMeter, load_nvml
from greenllm.energy.meters.protocol import Meter
from greenllm.model.options import own_name

ARMS: Mapping[str, tuple[str, ...]] = {
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
Cells = Mapping[tuple[int, str], Sequence[Figures]]


def page(result: study.Result) -> str:
    """A row for every precision and batch size."""
    columns = {
        "weights": value("arm"),
        "batch": value("batch"),
        "tok/s": value("tokens_per_s", ",.0f"),
        "board W": value("board_w", ".0f"),
        "mJ/token, board": value("gpu_joules_per_token", ".3g", 1e3),
        "x the first (quartiles)": ratio("gpu_joules_over_first"),
        "mJ/token, processor": value("cpu_joules_per_token", ".3g", 1e3),
        "mJ/token, active": value("active_joules_per_token", ".3g", 1e3),
        "receipts / counter": value("receipts_over_counter.median", ".3f"),
    }
    return table(columns, rows_of(result["arms"], "arm", "batch")) + "\n"


STUDY = study.Study("gpu", page)


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


def turn(server: Server, meter: Meter, batch: int, tokens: int, source: random.Random) -> Figures:
    """Bursts until they have lasted, and what the board's counter moved by around them."""
    before_j = meter.read().joules["gpu"]
    burst = server.bursts(batch, tokens, source, least_s=LEAST_S)
    counted_j = meter.read().joules["gpu"] - before_j
    gpu_j, cpu_j = (_domain_j(burst, domain) for domain in ("gpu", "cpu"))
    return {
        **burst.figures(),
        "gpu_joules_per_token": gpu_j / burst.tokens,
        "cpu_joules_per_token": cpu_j / burst.tokens,
        "board_w": counted_j / burst.wall_s,
        "receipts_j": gpu_j,
        "counted_j": counted_j,
    }


def _domain_j(burst: Burst, domain: str) -> float:
    return sum(float(body["usage"]["energy"]["domains_joules"][domain]) for body in burst.bodies)


def figures(cells: Cells, arms: Sequence[str]) -> dict[str, Any]:
    """Every cell, beside the first arm at its batch size."""
    found: dict[str, Any] = {arm: {} for arm in arms}
    for (batch, arm), turns in cells.items():
        found[arm][str(batch)] = {
            **medians(turns, "tokens_per_s", "gpu_joules_per_token", "cpu_joules_per_token",
                      "active_joules_per_token", "board_w"),
            "receipts_over_counter": paired_ratio(
                column(turns, "receipts_j"), column(turns, "counted_j")
            ),
            "gpu_joules_over_first": over(turns, cells[batch, arms[0]], "gpu_joules_per_token"),
        }  # fmt: skip
    return found


def main(
    model: study.Model = "bundled",
    arms: study.Arms = "",
    batches: study.Batches = "1,8,32,128",
    rounds: study.Rounds = 3,
    tokens: study.Tokens = 64,
    name: study.Name = STUDY.name,
) -> None:
    """Measure precisions on a GPU, interleaved; what is known is saved after every round."""
    chosen = study.pick(study.split_names(arms), ARMS, "--arms: no")
    sizes = study.split_numbers(batches, "--batches")
    facts, meter, seeds = board(), NvmlMeter(load_nvml()), itertools.count()
    about: dict[str, Any] = {"model": own_name(model), "board": facts, "tokens": tokens}
    about["resting_w"] = idle_w(meter, 5.0)
    options = ["--device", "cuda", "--max-num-seqs", str(max(sizes))]
    options += ["--threads", "1", "--no-prefix-cache"]
    with serve_all(model, {arm: ARMS[arm] for arm in chosen}, *options) as servers:
        about["loaded_w"] = idle_w(meter, 5.0)

        def ask(key: tuple[int, str], number: int) -> Figures:
            size, arm = key
            return turn(servers[arm], meter, size, tokens, random.Random(next(seeds)))

        def keep(cells: Cells) -> None:
            done = {len(turns) for turns in cells.values()}
            if len(done) == 1:
                STUDY.save({**about, "rounds": done.pop(), "arms": figures(cells, chosen)}, name)

        groups = ([(size, arm) for arm in chosen] for size in sizes)
        # In the first round graphs are recorded, and kernels are chosen.
        cells = study.interleave(ask, rounds, *groups, warm_up=True, after=keep)
    STUDY.report({**about, "rounds": rounds, "arms": figures(cells, chosen)}, name)


if __name__ == "__main__":
    STUDY.run(main)
