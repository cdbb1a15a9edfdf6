"""The worked example: notes on a household's energy become data, and what that costs in all.

    python -m evals.studies.sustainability

An adapter is trained on the built-in example; the model with and without it reads notes that
training never saw, through a server; and everything that was spent is counted: a server's start,
its waiting and the asking beside what is on the receipts. What the data is good for, a
kilowatt-hour that somebody saves with it, is nobody's to claim here.

Not covered: what the base model cost to train (its card says so); the machine's own making but for
the embodied share on each receipt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import BenchError, finish
from evals.lab import RESULTS, save
from evals.tuning.servers import Laps

console = Console(stderr=True)
NAME = "household"
_AT = (100, 1_000, 10_000, 100_000)


def greenllm(*words: str) -> None:
    """Run a command of the product.

    Raises:
        BenchError: it failed.
    """
    command = [sys.executable, "-m", "greenllm", *words]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise BenchError(f"greenllm {words[0]} failed")


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def unseen(count: int) -> list[dict[str, str]]:
    """Notes that are not in the example data."""
    household = import_module("finetune.data.household")
    known = {row["prompt"] for row in household.household_rows()}
    rows: list[dict[str, str]] = household.household_rows(seed="unseen", size=2 * count)
    return [row for row in rows if row["prompt"] not in known][:count]


def balance(cost_j: float | None, side: Mapping[str, Any]) -> dict[str, Any]:
    """What a right note costs with the training shared out among so many; None where unknown."""
    note_j, right = side["joules_per_note"], side["right"]
    per_right = {str(count): _shared_out(cost_j, note_j, right, count) for count in _AT}
    notes = None if not note_j or cost_j is None else cost_j / note_j
    return {"joules_per_right_note_at": per_right, "notes_that_cost_as_much": notes}


def _shared_out(
    cost_j: float | None, note_j: float | None, right: float, count: int
) -> float | None:
    if cost_j is None or note_j is None or not right:
        return None
    return (cost_j / count + note_j) / right


def markdown(found: Mapping[str, Any]) -> str:
    """The balance as a page."""
    trained, before, after = found["trained"], found["before"], found["after"]
    rows = [
        ("training the adapter, scoring included", _j(trained["total_j"]), _g(trained["total_g"])),
        *(
            (f"reading {side['examples']} notes, {name}", _j(side["energy_j"]), _g(side["grams"]))
            for name, side in (("without it", before), ("with it", after))
        ),
        *(
            (f"starting the server, waiting and asking, {name}", _j(side["beside_j"]), "-")
            for name, side in (("without it", before), ("with it", after))
        ),
    ]
    lines = ["| what | joules | g CO2e |", "|---|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "| | without it | with it |", "|---|---:|---:|"]
    shares = [f"{side['right']:.1%} ({side['low']:.1%} to {side['high']:.1%})"
              for side in (before, after)]  # fmt: skip
    lines += [f"| notes read right | {' | '.join(shares)} |"]
    lines += ["", "| notes read in its life | J per note read right, training shared out |"]
    lines += ["|---:|---:|"]
    shared = found["balance"]["joules_per_right_note_at"]
    lines += [f"| {int(count):,} | {_j(value)} |" for count, value in shared.items()]
    return "\n".join(lines) + "\n"


def _j(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _g(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def side_of(task: Mapping[str, Any], spent_j: float) -> dict[str, Any]:
    """One evaluation in short; `spent_j` is what all of its processes drew."""
    value, energy_j = task["value"], task["energy_j"]
    return {
        "examples": value["examples"], "right": value["value"], "low": value["low"],
        "high": value["high"], "energy_j": energy_j, "grams": task["grams"],
        "beside_j": None if energy_j is None else spent_j - energy_j,
        "joules_per_note": task["joules_per_example"], "p95_s": task["p95_s"],
    }  # fmt: skip


def evaluations(notes: Path, data_dir: Path, folder: Path) -> list[dict[str, Any]]:
    """The base and the adapter on the same notes."""
    meter, _ = import_module("greenllm.cli.metering").meter_of_tree("auto", os.getpid())
    laps, found = Laps(meter), []
    for name in ("bundled", NAME):
        output = folder / f"eval-{name}"
        greenllm(
            "eval", f"json:{notes}", "--serve", f"--data-dir {data_dir}", "--ask-for", name,
            "--output", str(output),
        )  # fmt: skip
        (task,) = read(output / "evaluation.json")["tasks"].values()
        found.append(side_of(task, laps.lap()))
    return found


def main(
    notes: Annotated[int, typer.Option(help="Notes to read.")] = 300,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "sustainability",
) -> None:
    """Train, read, and count."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = folder / "notes.jsonl"
        asked.write_text("\n".join(map(json.dumps, unseen(notes))), encoding="utf-8")
        greenllm("finetune", "--data", "example", "--name", NAME, "--data-dir", place)
        trained = read(folder / "adapters" / NAME / "green_report.json")
        before, after = evaluations(asked, folder, folder)
    measures = trained["measures"]
    result = {
        "trained": {
            "total_j": measures["energy"]["total_j"],
            "total_g": measures["carbon"]["total_g"],
            "method": measures["energy"]["method"],
        },
        "before": before,
        "after": after,
        "balance": balance(measures["energy"]["total_j"], after),
    }
    path = save(name, result, module="sustainability")
    page = markdown(result)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    console.print(page)
    console.print(f"written to {path}")


if __name__ == "__main__":
    finish("evals.studies.sustainability", lambda: typer.run(main))
