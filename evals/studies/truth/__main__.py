"""Whether receipts are true: `python -m evals.studies.truth`, and `... truth shapley`.

Question: how far is a request's receipt from what it really cost, and does its 90 % interval hold
the truth in nine of ten cases? Arms: meters (counters of 1, 100 and 1000 ms, a power reading that
is the average of a second) and laws of step costs (additive, and not: roofline, tiles, concave).
Measure: the product's engine, scheduler and account serve a mixed load on a simulated machine in
simulated time; each request's true share is its Shapley value of the steps it was in.

`shapley` asks the same of real steps: the exact Shapley values of measured step costs, from all
subsets of up to six requests, beside the shares that the account's fit gives.

Not covered: other programs on the machine, a meter's own error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from evals.studies import study
from evals.studies.truth.costs import LAWS
from evals.studies.truth.figures import arm_figures, by_class
from evals.studies.truth.meters import KINDS
from evals.studies.truth.report import STUDY
from evals.studies.truth.simulate import Arm, Run, Simulation
from evals.studies.truth.targets import judged
from greenllm.model.options import own_name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
ARMS = {str(arm): arm for arm in itertools.starmap(Arm, itertools.product(KINDS, LAWS))}


def chosen(text: str) -> list[str]:
    """Arms by their names; a meter's or a law's name stands for all of its arms."""
    words = study.split_names(text)
    known = {name: [name] for name in ARMS}
    known |= {kind: [name for name in ARMS if kind in name.split("/")] for kind in (*KINDS, *LAWS)}
    picked = study.pick(words, known, "--arms: there is no") if words else list(ARMS)
    wanted = {name for word in picked for name in known[word]}
    return [name for name in ARMS if name in wanted]


def measure(
    names: Sequence[str], seeds: int, seconds: float, *, stamps: bool, glitches: int
) -> dict[str, Any]:
    """All arms, and the classes of each meter over all its laws."""
    runs: dict[str, list[Run]] = {}
    for name in names:
        runs[name] = [
            Simulation(ARMS[name], seed, seconds, stamps=stamps, num_glitches=glitches).run()
            for seed in range(seeds)
        ]
        study.console.print(name)
    arms = {name: arm_figures(found) for name, found in runs.items()}
    meters = {
        meter: by_class(
            outcome
            for name, found in runs.items()
            if ARMS[name].meter == meter
            for run in found
            for outcome in run.outcomes
        )
        for meter in dict.fromkeys(ARMS[name].meter for name in names)
    }
    return {"targets": judged(arms, meters), "arms": arms, "meters": meters}


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    arms: study.Arms = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 3,
    seconds: Annotated[float, typer.Option(min=20, help="Seconds of load in a run.")] = 114.0,
    glitches: Annotated[int, typer.Option(help="Faults of the sensor in a run, of each kind.")] = 0,
    stamps: Annotated[bool, typer.Option(help="Whether readings say when they ticked.")] = True,
    name: study.Name = STUDY.name,
) -> None:
    """Hold receipts against what a simulated machine really used."""
    if context.invoked_subcommand is not None:
        return
    found = measure(chosen(arms), seeds, seconds, stamps=stamps, glitches=glitches)
    about = {"seeds": seeds, "seconds": seconds, "glitches": glitches, "stamps": stamps}
    STUDY.report({**about, **found}, name)


@app.command()
def shapley(
    model: study.Model = "bundled",
    quantize: Annotated[str, typer.Option(help="none, int8 or int4.")] = "none",
    dtype: Annotated[str, typer.Option(help="Arithmetic.")] = "float32",
    threads: study.Threads = 1,
    rounds: study.Rounds = 15,
    unit: Annotated[str, typer.Option(help="Seconds of the `cpu`, or on the `wall`.")] = "cpu",
    window: Annotated[int, typer.Option(min=1, help="Steps per window that the fit has.")] = 10,
    name: study.Name = "truth_shapley",
) -> None:
    """Hold the account's shares of real steps against their Shapley values."""
    from evals.studies.truth.measured import measure_games  # which loads torch

    found = measure_games(
        model, threads, rounds, unit, window=window, quantize=quantize, dtype=dtype
    )
    about = {"model": own_name(model), "quantize": quantize, "dtype": dtype, "window": window}
    STUDY.report({**about, "threads": threads, "rounds": rounds, "unit": unit, **found}, name)


if __name__ == "__main__":
    STUDY.run(app)
