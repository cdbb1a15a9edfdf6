"""What company saves: `python -m evals.studies.sharing`.

Question: how many joules does a request take alone, and how many in company? Arms: the same request
in bursts of 1 to 32, and alone with short and long answers, in turns on one server. Measure: active
and total joules of each request, read from the ledger as a user would.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from evals.studies import study
from evals.studies.load import CHATS, Server, chat_body, serve
from evals.studies.ratios import paired_ratio
from greenllm.energy.ledger import Ledger
from greenllm.energy.receipt import Receipt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 64, 256)
_COMPANY = 16
Bursts = Mapping[int, Sequence[Sequence[Receipt]]]


def ask(server: Server, ledger: Ledger, batch: int, tokens: int) -> list[Receipt]:
    """The receipts of a burst."""
    burst = server.burst([chat_body(server.model, tokens)] * batch, path=CHATS)
    found = [ledger.receipt(body["id"]) for body in burst.bodies]
    return [receipt for receipt in found if receipt is not None]


def measure(server: Server, ledger: Ledger, count: int, tokens: int) -> dict[str, Any]:
    """All bursts, interleaved."""
    by_batch: dict[int, list[list[Receipt]]] = defaultdict(list)
    by_length: dict[int, list[list[Receipt]]] = defaultdict(list)
    for _ in study.each_round(count):
        for batch in BATCHES:
            by_batch[batch].append(ask(server, ledger, batch, tokens))
        for length in LENGTHS:
            by_length[length].append(ask(server, ledger, 1, length))
    return {
        f"alone_over_batch_{_COMPANY}": {
            "active": _alone_over(by_batch, lambda receipt: receipt.active_j or 0.0),
            "total": _alone_over(by_batch, lambda receipt: receipt.total_j or 0.0),
        },
        "by_batch": {str(key): _point(bursts) for key, bursts in by_batch.items()},
        "by_length": {str(key): _point(bursts) for key, bursts in by_length.items()},
    }


def _alone_over(by_batch: Bursts, joules: Callable[[Receipt], float]) -> dict[str, float]:
    """Joules alone over the mean of a burst, round by round."""
    alone, shared = (
        [statistics.mean(map(joules, burst)) for burst in by_batch[batch]]
        for batch in (1, _COMPANY)
    )
    return paired_ratio(alone, shared)


def _point(bursts: Sequence[Sequence[Receipt]]) -> dict[str, float]:
    """Medians of one burst size or length, and the quartiles of the active joules."""
    receipts = [receipt for burst in bursts for receipt in burst]
    active_j = [receipt.active_j or 0.0 for receipt in receipts]
    low_j, _, high_j = statistics.quantiles(active_j, n=4)
    return {
        "active_j": statistics.median(active_j),
        "active_q1_j": low_j,
        "active_q3_j": high_j,
        "total_j": statistics.median(r.total_j or 0.0 for r in receipts),
        "joules_per_token": statistics.median(r.joules_per_token or 0.0 for r in receipts),
        "requests": len(receipts),
    }


def plot(figure: Figure, result: study.Result) -> None:
    """Joules per token against batch size."""
    points, tokens = result["by_batch"], result["tokens"]
    sizes = [int(size) for size in points]

    def per_token(name: str) -> list[float]:
        return [1e3 * point[name] / tokens for point in points.values()]

    figure.set_size_inches(6, 3.6)
    study.curves(
        figure.subplots(),
        {
            "total": (sizes, per_token("total_j"), "o-"),
            "active": (sizes, per_token("active_j"), "s--"),
        },
        ticks=sizes,
        yscale="log",
        xlabel="requests in the batch",
        ylabel="mJ per token",
        title="Energy per generated token, bundled model (modelled joules)",
    )


STUDY = study.Study("sharing", plot=plot)


def main(
    rounds: study.Rounds = 12,
    tokens: study.Tokens = 64,
    threads: study.Threads = 1,
    model: study.Model = "bundled",
) -> None:
    """Measure energy per request against batch size and length."""
    with serve(model, "--threads", str(threads), "--no-prefix-cache") as server:
        ledger_path = server.folder / "ledger.sqlite"
        with closing(Ledger(ledger_path, read_only=True)) as ledger:
            found = measure(server, ledger, rounds, tokens)
    STUDY.report({"tokens": tokens, "rounds": rounds, **found})


if __name__ == "__main__":
    STUDY.run(main)
