"""A simulated fleet on a measured curve: `python -m evals.studies.placement --trace FILE`.

Question: how many machines, which batch limit, spread or packed, in which region? See
`docs/placement.md`.
Everything this writes is simulated; seconds and joules of the machines are a measured result's.
Grams need hourly intensities (`--regions`, the first zone is where requests come from).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.entry import BenchError
from evals.studies import study
from evals.studies.placement.curve import idle_w, read_curve
from evals.studies.placement.machine import Assumed, Machine, make_machine
from evals.studies.placement.questions import Row, Scenario, days, fleets, limits, replicas
from evals.studies.placement.regions import load_regions
from evals.studies.placement.report import STUDY
from evals.studies.placement.trace import load_trace

MACHINE = study.RESULTS / "peers.json"
IDLE = study.RESULTS / "runners_135m.json"


def split_arm(text: str, default: Path) -> tuple[Path, str]:
    """`FILE.json:ARM`, or an arm of the default file.

    Raises:
        BenchError: a file without an arm.
    """
    if text.endswith(".json"):
        raise BenchError(f"which arm of it? Say {text}:ARM")
    path, found, arm = text.rpartition(".json:")
    return (Path(f"{path}.json"), arm) if found else (default, text)


def machine_of(curve: str, idle: str, assumed: Assumed) -> Machine:
    """The machine, from the arms of two results."""
    path, arm = split_arm(curve, MACHINE)
    measured = read_curve(study.read(path), arm)
    if assumed.idle_w is not None:
        return make_machine(measured, assumed, None, "")
    idle_path, idle_arm = split_arm(idle, IDLE)
    found_w = idle_w(study.read(idle_path), idle_arm)
    return make_machine(measured, assumed, found_w, f"{idle_path.name}, {idle_arm}")


def answers(scenario: Scenario, sizes: list[int]) -> dict[str, list[Row]]:
    """All of them; a day needs two regions."""
    found = {
        "replicas": replicas(scenario),
        "limits": limits(scenario),
        "fleets": list(fleets(scenario, sizes)),
    }
    if len(scenario.grids) > 1:
        year = datetime.fromtimestamp(scenario.trace.start_s, UTC).year
        found["days"] = list(days(scenario, year))
    return found


def main(
    trace: Annotated[Path, typer.Option(help="CSV of TIMESTAMP,ContextTokens,GeneratedTokens.")],
    regions: Annotated[
        list[Path] | None, typer.Option(help="Electricity Maps' hourly CSV; again for more.")
    ] = None,
    curve: Annotated[
        str, typer.Option(help="ARM of evals/studies/results/peers.json, or FILE.json:ARM.")
    ] = "greenllm-int8",
    idle: Annotated[
        str, typer.Option(help="ARM of evals/studies/results/runners_135m.json, or FILE.json:ARM.")
    ] = "openvino int8",
    nodes: Annotated[str, typer.Option(help="Sizes of fleets.")] = "1,10,100,1000",
    load: Annotated[float, typer.Option(help="Share of what full batches could do.")] = 0.2,
    limit: Annotated[int, typer.Option(help="Batch limit of the fleets; 0: the largest.")] = 0,
    assume: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER in place of what is assumed; again.")
    ] = None,
    name: study.Name = STUDY.name,
) -> None:
    """Simulate placement: machines, batch limits, policies, regions."""
    if not 0 < load < 1:
        raise BenchError(f"--load must be between 0 and 1, not {load:g}")
    if limit < 0:
        raise BenchError(f"--limit must be 0 or more, not {limit}")
    assumed = Assumed.parse(assume or [])
    sizes = study.split_numbers(nodes, "--nodes")
    machine = machine_of(curve, idle, assumed)
    loaded, factor = load_trace(trace, int(assumed.max_context))
    scenario = Scenario(
        machine=machine,
        trace=loaded,
        grids=tuple(load_regions(regions or [])),
        assumed=assumed,
        load=load,
        limit=limit or machine.curve.largest,
        clock=time.process_time,
        tell=study.console.print,
    )
    path, arm = split_arm(curve, MACHINE)
    known = {"length_factor": factor, "curve": path.name, "arm": arm}
    STUDY.report({**about(scenario), **known, "studies": answers(scenario, sizes)}, name)


def about(scenario: Scenario) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "simulated": True,
        "trace": scenario.trace.name,
        "regions": [grid.zone for grid in scenario.grids],
        "load": scenario.load,
        "limit": scenario.limit,
        "assumed": scenario.assumed.as_dict(),
        "machine_model": scenario.machine.as_dict(),
    }


if __name__ == "__main__":
    STUDY.run(main)
