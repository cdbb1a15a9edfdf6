"""Whether a search finds what measuring everything finds: `python -m evals.studies.tuned`.

Question: is the setting that `greenllm tune` finds as good as the best one, and what share of the
joules does the search take? Arms: `greenllm tune` as a search and exhaustively; then the two
settings that they chose answer in turns, as only what was measured side by side is compared.
Measure: joules of both are what `tune` counted, servers and all.

Not covered: limits of latency.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.entry import BenchError
from evals.studies import study
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from evals.tuning.config import TuneConfig
from evals.tuning.servers import Laps, ServerBench
from evals.tuning.space import DEFAULT, Setting
from greenllm.energy.meters.modelled import modelled_meter

STUDY = study.Study("tuned")


def tune(model: str, folder: Path, *options: str) -> dict[str, Any]:
    """What one run of the command found."""
    study.call("greenllm", "tune", model, "--output", str(folder), *options)
    return study.read(folder / "tuning.json")


def side_by_side(model: str, settings: list[Setting], examples: int, rounds: int) -> list[float]:
    """Joules per token of the first over the second, round by round."""
    names = TuneConfig().tasks.split(",")

    def make(count: int) -> Any:
        return find_tasks(names, generated_tasks(), limit=-(-count // len(names)), shots=0, seed=7)

    options = ["--no-prefix-cache"]
    bench = ServerBench(model, make, 4, Laps(modelled_meter()), options, most=2)
    ratios: list[float] = []
    try:
        # The first round finds cold servers.
        for number in study.each_round(rounds, warm_up=True):
            one, other = bench.measure(settings, examples)
            if error := one.error or other.error:
                raise BenchError(f"a winner cannot be measured again: {error}")
            if number >= 0:
                ratios.append(one.joules_per_token / other.joules_per_token)
    finally:
        bench.close()
    return ratios


def setting_of(found: Mapping[str, Any]) -> Setting:
    """What was chosen."""
    return Setting(tuple(found["chosen"]["setting"].items()))


def main(
    model: study.Model = "bundled",
    space: Annotated[str, typer.Option(help="As for greenllm tune.")] = DEFAULT,
    many: Annotated[int, typer.Option(help="Examples of the last look at a setting.")] = 256,
    rounds: Annotated[int, typer.Option(help="Rounds of the two winners.")] = 7,
) -> None:
    """Search, exhaust, and compare."""
    options = ("--space", space, "--many", str(many))
    with tempfile.TemporaryDirectory() as folder:
        searched = tune(model, Path(folder) / "searched", *options)
        all_of_them = tune(model, Path(folder) / "all", *options, "--exhaustive")
    settings = [setting_of(searched), setting_of(all_of_them)]
    is_same = settings[0] == settings[1]
    ratios = [1.0] if is_same else side_by_side(model, settings, many, rounds)
    STUDY.report({
        "model": model,
        "searched": {"setting": str(settings[0]), "spent_j": searched["spent_j"]},
        "exhaustive": {"setting": str(settings[1]), "spent_j": all_of_them["spent_j"]},
        "spent_share": searched["spent_j"] / all_of_them["spent_j"],
        "joules_over_best": {"median": statistics.median(ratios), "rounds": ratios},
    })  # fmt: skip


if __name__ == "__main__":
    STUDY.run(main)
