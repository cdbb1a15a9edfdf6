"""What other programs do to a receipt: `python -m evals.studies.strangers`.

Question: does the total of a request beside busy programs lie within its own 90 % interval of the
total without them? Arms: the same request alone on the machine, and beside busy loops of another
process, in turns on one server. Measure: what the receipts say.

Not covered: whether either is true (`evals.studies.truth`).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Annotated, Any

import typer

from evals.studies import study
from evals.studies.load import CHATS, Server, chat_body, serve
from evals.tables import Column, table, text
from greenllm.energy.ledger import Ledger
from greenllm.energy.receipt import Receipt
from greenllm.interrupts import ended_with_parent

ARMS = ("alone", "beside")
_SETTLES_S = 1.5


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many loops of other processes."""
    command = ended_with_parent([sys.executable, "-c", "while True: pass"])
    loops = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(_SETTLES_S if count else 0.0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def ask(server: Server, ledger: Ledger, tokens: int, loops: int) -> list[Receipt]:
    """The receipt of one request."""
    with busy(loops):
        burst = server.burst([chat_body(server.model, tokens)], path=CHATS)
    time.sleep(_SETTLES_S)
    found = ledger.receipt(burst.bodies[0]["id"])
    return [] if found is None else [found]


def row_of(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Medians of an arm, and what its receipts say of themselves."""

    def median(values: Iterator[float | None]) -> float:
        known = [value for value in values if value is not None]
        return statistics.median(known)

    return {
        "active_j": median(r.active_j for r in receipts),
        "idle_j": median(r.idle_j for r in receipts),
        "total_j": median(r.total_j for r in receipts),
        "embodied_g": median(r.embodied_g for r in receipts),
        "uncertainty": median(r.uncertainty for r in receipts),
        "duration_s": median(r.duration_s for r in receipts),
        "attributions": sorted({r.attribution for r in receipts}),
        "requests": len(receipts),
    }


def within(alone: Mapping[str, Any], receipts: Sequence[Receipt]) -> float:
    """The part of receipts whose interval has the median total of those that were alone."""
    quiet_j: float = alone["total_j"]
    hits = [
        abs((r.total_j or 0.0) - quiet_j) <= (r.uncertainty or 0.0) * (r.total_j or 0.0)
        for r in receipts
    ]
    return sum(hits) / len(hits)


def page(result: study.Result) -> str:
    """Both arms as a table."""
    columns: Mapping[str, Column] = {
        "request": lambda row: str(row["arm"]),
        "active J": lambda row: text(row["active_j"]),
        "idle J": lambda row: text(row["idle_j"]),
        "total J": lambda row: text(row["total_j"]),
        "embodied mg": lambda row: text(row["embodied_g"], factor=1000),
        "± 90 %": lambda row: text(row["uncertainty"], ".0%"),
        "seconds": lambda row: text(row["duration_s"]),
        "attribution": lambda row: ", ".join(row["attributions"]),
    }
    rows = [{"arm": arm, **result[arm]} for arm in ARMS]
    share = text(result["within"], ".0%")
    return f"{table(columns, rows)}\n\nWithin their intervals of the quiet total: {share}.\n"


STUDY = study.Study("strangers", page=page)


def main(
    rounds: study.Rounds = 10,
    loops: Annotated[int, typer.Option(help="Busy loops beside it.")] = 4,
    tokens: study.Tokens = 40,
    threads: study.Threads = 1,
    model: study.Model = "bundled",
    name: study.Name = STUDY.name,
) -> None:
    """Measure one request alone and beside busy programs."""
    count_of = {"alone": 0, "beside": loops}
    with ExitStack() as stack:
        server = stack.enter_context(serve(model, "--threads", str(threads), "--no-prefix-cache"))
        path = server.folder / "ledger.sqlite"
        ledger = stack.enter_context(closing(Ledger(path, read_only=True)))

        def turn(arm: str, _: int) -> list[Receipt]:
            return ask(server, ledger, tokens, count_of[arm])

        taken = study.interleave(turn, rounds, list(ARMS), warm_up=True)
    found = {arm: [r for turn in turns for r in turn] for arm, turns in taken.items()}
    rows = {arm: row_of(receipts) for arm, receipts in found.items()}
    share = within(rows["alone"], found["beside"])
    STUDY.report(
        {"rounds": rounds, "loops": loops, "tokens": tokens, **rows, "within": share}, name
    )


if __name__ == "__main__":
    STUDY.run(main)
