"""What company saves: the same request alone and in batches: `python -m evals.studies.sharing`.

Everything is read from the ledger of a real server, as a user would: active and total joules per
request at batch sizes 1 to 32, and for short and long answers. Writes a table and a plot.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import matplotlib as mpl
import typer
from rich.console import Console

from evals.entry import finish
from evals.lab import RESULTS, chat_body, running_server, save
from evals.studies.ratios import paired_ratio
from greenllm.energy.ledger import Ledger
from greenllm.energy.receipt import Receipt

mpl.use("Agg")
console = Console()
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 64, 256)


async def burst(url: str, model: str, count: int, tokens: int) -> list[str]:
    """`count` requests at once; returns their ids."""
    async with httpx.AsyncClient(timeout=300) as client:
        body = chat_body(Path(model).name, tokens, stream=False)
        answers = await asyncio.gather(
            *(client.post(f"{url}/v1/chat/completions", json=body) for _ in range(count))
        )
    return [str(answer.raise_for_status().headers["X-Request-Id"]) for answer in answers]


def _receipts(ledger: Ledger, ids: list[str]) -> list[Receipt]:
    found = [ledger.receipt(request_id) for request_id in ids]
    return [receipt for receipt in found if receipt is not None]


def _point(receipts: list[Receipt]) -> dict[str, float]:
    """Medians of one burst size or length, and the quartiles of the active joules."""
    active_j = [r.active_j or 0.0 for r in receipts]
    low_j, _, high_j = statistics.quantiles(active_j, n=4)
    return {
        "active_j": statistics.median(active_j),
        "active_q1_j": low_j,
        "active_q3_j": high_j,
        "total_j": statistics.median(r.total_j or 0.0 for r in receipts),
        "joules_per_token": statistics.median(r.joules_per_token or 0.0 for r in receipts),
        "requests": len(receipts),
    }


def measure(url: str, model: str, ledger: Ledger, rounds: int, tokens: int) -> dict[str, Any]:
    """Run all bursts, interleaved."""
    by_batch: dict[int, list[Receipt]] = {batch: [] for batch in BATCHES}
    by_length: dict[int, list[Receipt]] = {length: [] for length in LENGTHS}
    for number in range(rounds):
        for batch in BATCHES:
            by_batch[batch] += _receipts(ledger, asyncio.run(burst(url, model, batch, tokens)))
        for length in LENGTHS:
            by_length[length] += _receipts(ledger, asyncio.run(burst(url, model, 1, length)))
        console.print(f"round {number + 1}/{rounds}")
    return {
        "alone_over_batch_16": {
            "active": _alone_over(by_batch, 16, rounds, lambda r: r.active_j or 0.0),
            "total": _alone_over(by_batch, 16, rounds, lambda r: r.total_j or 0.0),
        },
        "by_batch": {str(key): _point(value) for key, value in by_batch.items()},
        "by_length": {str(key): _point(value) for key, value in by_length.items()},
    }


def _alone_over(
    by_batch: dict[int, list[Receipt]],
    batch: int,
    rounds: int,
    joules: Callable[[Receipt], float],
) -> dict[str, float]:
    """Joules alone over the mean of a burst, round by round."""
    shared = [by_batch[batch][i * batch : (i + 1) * batch] for i in range(rounds)]
    means_j = [statistics.mean(map(joules, burst_of)) for burst_of in shared]
    return paired_ratio([joules(receipt) for receipt in by_batch[1]], means_j)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Joules per token against batch size."""
    from matplotlib.figure import Figure

    points = figures["by_batch"]
    sizes = [int(size) for size in points]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    tokens = figures["tokens"]
    axes.plot(sizes, [1e3 * points[str(s)]["total_j"] / tokens for s in sizes], "o-", label="total")
    axes.plot(
        sizes, [1e3 * points[str(s)]["active_j"] / tokens for s in sizes], "s--", label="active"
    )
    axes.set(xscale="log", yscale="log", xlabel="requests in the batch", ylabel="mJ per token")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_title("Energy per generated token, bundled model (modelled joules)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main(
    rounds: Annotated[int, typer.Option(help="Bursts per size.")] = 12,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads of the model.")] = 1,
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
) -> None:
    """Measure energy per request against batch size and length."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--threads", str(threads), "--no-prefix-cache")
        with running_server(model, Path(folder), *options) as (url, _):
            ledger = Ledger(Path(folder) / "ledger.sqlite", read_only=True)
            figures = {
                "tokens": tokens,
                "rounds": rounds,
                **measure(url, model, ledger, rounds, tokens),
            }
    console.print_json(data=figures)
    console.print(f"written to {save('sharing', figures)}")
    draw(figures, RESULTS / "sharing.svg")


if __name__ == "__main__":
    finish("evals.studies.sharing", lambda: typer.run(main))
