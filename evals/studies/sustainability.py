"""The worked example, a household's energy: `python -m evals.studies.sustainability`.

Question: what does it cost in all that notes become data? Arms: an adapter is trained on the
built-in example; the model with and without it reads notes that training never saw, through a
server. Measure: everything that was spent, a server's start, its waiting and the asking beside what
is on the receipts, and the share of notes that were read right. What the data is good for, a
kilowatt-hour that somebody saves with it, is nobody's to claim here.

Not covered: what the base model cost to train (its card says so); the machine's own making but for
the embodied share on each receipt.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.studies import study
from evals.tables import grid, text
from evals.tuning.servers import Laps
from finetune.data.household import household_rows
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.scope import Scope
from greenllm.options import MeterOptions

NAME = "household"
_AT = (100, 1_000, 10_000, 100_000)


def unseen(count: int) -> list[dict[str, str]]:
    """Notes that are not in the example data."""
    known = {row["prompt"] for row in household_rows()}
    rows = household_rows(seed="unseen", size=2 * count)
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


def page(result: study.Result) -> str:
    """The balance: what was spent, what came of it, and what a right note costs in the end."""
    trained, before, after = result["trained"], result["before"], result["after"]
    sides = {"without it": before, "with it": after}
    spent = [
        ("training the adapter, scoring included", trained["total_j"], trained["total_g"]),
        *((f"reading {side['examples']} notes, {name}", side["energy_j"], side["grams"])
          for name, side in sides.items()),
        *((f"starting the server, waiting and asking, {name}", side["beside_j"], None)
          for name, side in sides.items()),
    ]  # fmt: skip
    costs = [(what, text(joules, ".4g"), text(grams, ".3g")) for what, joules, grams in spent]
    shares = [f"{side['right']:.1%} ({side['low']:.1%} to {side['high']:.1%})"
              for side in sides.values()]  # fmt: skip
    shared = result["balance"]["joules_per_right_note_at"]
    life = [(f"{int(count):,}", text(joules, ".4g")) for count, joules in shared.items()]
    tables = (
        grid(("what", "joules", "g CO2e"), costs),
        grid(("", *sides), [("notes read right", *shares)]),
        grid(("notes read in its life", "J per note read right, training shared out"), life),
    )
    return "\n\n".join(tables) + "\n"


STUDY = study.Study("sustainability", page)


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
    meter, _ = open_meter(MeterOptions(), Scope(CpuClock(tree_of=os.getpid())))
    laps, found = Laps(meter), []
    for name in ("bundled", NAME):
        output = folder / f"eval-{name}"
        options = ("--serve", f"--data-dir {data_dir}", "--ask-for", name, "--output", str(output))
        study.call("greenllm", "eval", f"json:{notes}", *options)
        (task,) = study.read(output / "evaluation.json")["tasks"].values()
        found.append(side_of(task, laps.lap()))
    return found


def main(
    notes: Annotated[int, typer.Option(help="Notes to read.")] = 300,
    name: study.Name = STUDY.name,
) -> None:
    """Train, read, and count."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = folder / "notes.jsonl"
        asked.write_text("\n".join(map(json.dumps, unseen(notes))), encoding="utf-8")
        study.call("greenllm", "finetune", "--data", "example", "--name", NAME, "--data-dir", place)
        trained = study.read(folder / "adapters" / NAME / "green_report.json")["measures"]
        before, after = evaluations(asked, folder, folder)
    total_j = trained["energy"]["total_j"]
    STUDY.report({
        "trained": {
            "total_j": total_j,
            "total_g": trained["carbon"]["total_g"],
            "method": trained["energy"]["method"],
        },
        "before": before,
        "after": after,
        "balance": balance(total_j, after),
    }, name)  # fmt: skip


if __name__ == "__main__":
    STUDY.run(main)
