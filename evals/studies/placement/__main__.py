"""A simulated fleet on a measured curve: `python -m evals.studies.placement --trace FILE`.

How many machines, which batch limit, spread or packed, in which region: see `docs/placement.md`.
Everything this writes is simulated; seconds and joules of the machines are a measured result's.
Grams need hourly intensities (`--regions`, the first zone is where requests come from).
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import BenchError, finish, split_names
from evals.studies.placement.curve import idle_w, read_curve
from evals.studies.placement.machine import Assumed, Machine, make_machine
from evals.studies.placement.regions import load_regions
from evals.studies.placement.report import draw, markdown
from evals.studies.placement.studies import Row, Study, days, fleets, limits, replicas
from evals.studies.placement.trace import load_trace

console = Console(stderr=True)
RESULTS = Path(__file__).parents[1] / "results"
MACHINE = RESULTS / "peers.json"
IDLE = RESULTS / "runners_135m.json"


def read_result(path: Path) -> dict[str, Any]:
    """A result that was written before.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path.name} is not a result: {error}") from error
    if not isinstance(found, dict):
        raise BenchError(f"{path.name} is not a result: it holds no object")
    return found


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
    measured = read_curve(read_result(path), arm)
    if assumed.idle_w is not None:
        return make_machine(measured, assumed, None, "")
    idle_path, idle_arm = split_arm(idle, IDLE)
    found_w = idle_w(read_result(idle_path), idle_arm)
    return make_machine(measured, assumed, found_w, f"{idle_path.name}, {idle_arm}")


def parse_nodes(text: str) -> list[int]:
    """Sizes of fleets.

    Raises:
        BenchError: they are not whole numbers above 0.
    """
    sizes = [int(word) if word.isdecimal() else 0 for word in split_names(text)]
    if not sizes or min(sizes) < 1:
        raise BenchError(f"--nodes takes numbers like 1,10,100, not {text!r}")
    return sizes


def make_studies(study: Study, sizes: list[int]) -> dict[str, list[Row]]:
    """All of them; a day needs two regions."""
    found = {
        "replicas": replicas(study),
        "limits": limits(study),
        "fleets": list(fleets(study, sizes)),
    }
    if len(study.grids) > 1:
        year = datetime.fromtimestamp(study.trace.start_s, UTC).year
        found["days"] = list(days(study, year))
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
    name: Annotated[str, typer.Option(help="Name of the result.")] = "placement",
) -> None:
    """Simulate placement: machines, batch limits, policies, regions."""
    if not 0 < load < 1:
        raise BenchError(f"--load must be between 0 and 1, not {load:g}")
    if limit < 0:
        raise BenchError(f"--limit must be 0 or more, not {limit}")
    assumed, sizes = Assumed.parse(assume or []), parse_nodes(nodes)
    machine = machine_of(curve, idle, assumed)
    loaded, factor = load_trace(trace, int(assumed.max_context))
    grids = tuple(load_regions(regions or []))
    size = limit or machine.curve.largest
    study = Study(machine, loaded, grids, assumed, load, size, time.process_time, console.print)
    path, arm = split_arm(curve, MACHINE)
    known = {"length_factor": factor, "curve": path.name, "arm": arm}
    write(name, {**about(study), **known, "studies": make_studies(study, sizes)})


def about(study: Study) -> dict[str, Any]:
    """What the figures rest on; files by their names, wherever they lie."""
    words = [Path(word).name if word.endswith(".csv") else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python -m evals.studies.placement", *words]),
        "simulated": True,
        "trace": study.trace.name,
        "regions": [grid.zone for grid in study.grids],
        "load": study.load,
        "limit": study.limit,
        "assumed": study.assumed.as_dict(),
        "machine_model": study.machine.as_dict(),
    }


def write(name: str, result: dict[str, Any]) -> None:
    """JSON, Markdown and a plot."""
    from evals.lab import save  # loads torch, which nothing before needs

    path = save(name, result, module="placement")
    page = markdown(read_result(path))
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    draw(result, path.with_suffix(".svg"))
    typer.echo(f"{page}written to {path}")


if __name__ == "__main__":
    finish("evals.studies.placement", lambda: typer.run(main))
