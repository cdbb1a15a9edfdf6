"""`greenllm doctor --cross-check`: every meter, CodeCarbon and Zeus on the same load.

Contract: all processors are busy for some seconds, and each counts; the ratios are those of mean
power to the meter that was chosen for the domain, as no two of them begin and end together. What is
unknown is a dash. Not covered: a load for GPUs, which are compared at rest unless something runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from greenllm.energy.calibration.witnesses import (
    CodeCarbonWitness,
    MeterWitness,
    Statement,
    Witness,
    ZeusWitness,
    hear,
    ratios,
)
from greenllm.energy.calibration.work import busy
from greenllm.energy.meters.choose import Rung
from greenllm.energy.meters.registry import Domain
from greenllm.figures import UNKNOWN, make_table, number, print_table

_LOAD_S = 5.0


def cross_check(
    console: Console,
    ladders: Mapping[Domain, Sequence[Rung]],
    num_cpus: int,
    others: Sequence[Witness] | None = None,
) -> None:
    """Load the machine, and print what each counted."""
    console.print(f"cross-check: {num_cpus} busy hardware threads for {_LOAD_S:g} s")
    rungs = [rung for tried in ladders.values() for rung in tried]
    meters = [MeterWitness(rung.name, rung.meter) for rung in rungs if rung.meter is not None]
    # The meters begin last and end first: a tracker may take seconds for either.
    others = [CodeCarbonWitness(), ZeusWitness()] if others is None else others
    told = hear([*others, *meters], lambda: _load(num_cpus))
    told += [Statement(rung.name, rung.reason) for rung in rungs if rung.meter is None]
    chosen = [
        next(rung.name for rung in tried if rung.meter is not None)
        for tried in ladders.values()
        if any(rung.meter is not None for rung in tried)
    ]
    print_table(console, "Cross-check", check_table(told, chosen))


def _load(num_cpus: int) -> None:
    with busy(num_cpus, "matrix", _LOAD_S):
        time.sleep(_LOAD_S)


def check_table(told: Sequence[Statement], chosen: Sequence[str]) -> Table:
    """One row for each domain of each; the chosen meters' rows say so."""
    table = make_table(
        ("counted by", "domain", "how, or why not", "J", "s", "W", "ratio"), num_text=3
    )
    ratio = ratios(told, chosen)
    for one in told:
        mark = ", chosen" if one.name in chosen else ""
        for domain, figures in _rows(one):
            table.add_row(
                f"{one.name}{mark}",
                domain,
                one.how,
                *map(number, figures),
                number(ratio.get((one.name, domain))),
            )
    return table


def _rows(one: Statement) -> Iterator[tuple[str, tuple[float | None, ...]]]:
    if not one.counted:
        yield UNKNOWN, (None, None, None)
    for domain, found in one.counted.items():
        watts = found.joules / found.seconds if found.seconds > 0 else None
        yield domain, (found.joules, found.seconds, watts)
