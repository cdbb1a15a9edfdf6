"""Whether every joule is on a bill, engine by engine: `python -m evals.studies.conservation`.

Question: do receipts, load, idle and what other processes took add up to what the meter counted?
Arms: each engine, with the same mixed load to a real server: bursts of several sizes, prompts and
answers of many lengths, greedy and sampled, on the base and on an adapter. Measure: the server is
stopped, and the rows of its ledger are added up here, one by one. So are the joules that the
answers themselves named.

vLLM's CPU build has an environment of its own: run it there with `--engines vllm`; engines that are
not asked for keep their figures in the result file.

Not covered: aborted requests (`tests/service/test_load.py`), whether the meter is right.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.entry import origin
from evals.studies import study
from evals.studies.adapters import write_adapter
from evals.studies.load import Body, completion_body, random_prompt, serve
from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import Ledger
from greenllm.model.options import LoadOptions
from greenllm.model.targets import targets_of

STUDY = study.Study("conservation")
ADAPTER = "a0"
ENGINES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("--engine", "native", "--runner", "openvino"),
    "torch": ("--engine", "native", "--runner", "torch"),
    "vllm": ("--engine", "vllm", "--kv-cache-gb", "0.5"),
}
BATCHES = (1, 2, 5, 16, 48)


def bodies(model: str, batch: int, source: random.Random) -> list[Body]:
    """So many requests, no two alike; every third is for the adapter."""
    found = []
    for number in range(batch):
        prompt = random_prompt(source.randint(4, 200), source)
        body = completion_body(model, prompt, source.randint(1, 96))
        if number % 2:
            body |= {"temperature": 1.0, "seed": number}
        found.append(body | ({"model": ADAPTER} if number % 3 == 2 else {}))
    return found


def measure(engine: str, model: str, rounds: int, threads: int) -> dict[str, Any]:
    """One engine's server under the load, and its books after it."""
    source, told_j, asked = random.Random(7), 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = dict(targets_of(model, LoadOptions()))
        write_adapter(folder / "adapters" / ADAPTER, targets, seed=1)
        options = (*ENGINES[engine], "--threads", str(threads), "--device", "cpu")
        with serve(model, *options, folder=folder) as server:
            for batch in BATCHES * rounds:
                burst = server.burst(bodies(server.model, batch, source))
                told_j += burst.total("energy_joules")
                asked += batch
        with closing(Ledger(folder / "ledger.sqlite", read_only=True)) as ledger:
            rows = [row.total_j or 0.0 for row in ledger.receipts(since_s=0.0)]
            session = ledger.sessions()[-1]
    return {
        "command": origin(STUDY.module)["command"],
        "meter": session.method,
        "requests": asked,
        "rows": len(rows),
        **books(session.totals, sum(rows), told_j),
    }


def books(totals: Totals, rows_j: float, told_j: float) -> dict[str, float]:
    """Where the joules are, and what is missing or too much relative to the meter's count."""
    others_j = totals.load_j + totals.idle_j + totals.unattributed_j + totals.train_j
    others_j += totals.open_j
    return {
        "meter_joules": totals.meter_j,
        "request_joules": rows_j,
        "load_joules": totals.load_j,
        "idle_joules": totals.idle_j,
        "unattributed_joules": totals.unattributed_j,
        "open_joules": totals.open_j,
        "error": abs(totals.meter_j - others_j - rows_j) / totals.meter_j,
        "answers_error": abs(told_j - rows_j) / rows_j,
    }


def kept() -> dict[str, Any]:
    """Figures of engines that were measured before."""
    path = study.RESULTS / f"{STUDY.name}.json"
    return dict(study.read(path)["engines"]) if path.is_file() else {}


def main(
    engines: Annotated[str, typer.Option(help="Comma-separated: openvino, torch, vllm.")] = "",
    rounds: study.Rounds = 3,
    threads: study.Threads = 1,
    model: study.Model = "bundled",
) -> None:
    """Hold the sum of receipts against the meter, engine by engine."""
    names = study.pick(study.split_names(engines), ENGINES, "--engines: no engine called")
    found = {name: measure(name, model, rounds, threads) for name in names}
    STUDY.report({"engines": dict(sorted({**kept(), **found}.items()))})


if __name__ == "__main__":
    STUDY.run(main)
