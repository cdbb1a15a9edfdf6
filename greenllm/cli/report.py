"""`greenllm report`: what the ledger holds, and whether it adds up.

Contract: reads only; a server may be writing meanwhile. Every mistake in the options is found
before the first receipt is read and is one line. Not covered: several ledgers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from greenllm.cli.options import DataDir
from greenllm.cli.report_data import check_group, collect, read_period
from greenllm.cli.report_export import check_plot, write_csv, write_json, write_plot
from greenllm.cli.report_tables import print_report
from greenllm.core import GreenllmError
from greenllm.energy.ledger import Ledger
from greenllm.figures import make_console
from greenllm.places import ledger_path


def report(
    data_dir: DataDir = None,
    group_by: Annotated[
        str, typer.Option(help="model, adapter, key, team, user, hour, outcome or endpoint.")
    ] = "model",
    since: Annotated[str | None, typer.Option(help="Unix seconds or ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Unix seconds or ISO 8601.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every receipt to this CSV file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write sums and sessions as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot (.png or .svg).")] = None,
) -> None:
    """Print the report and write the files asked for.

    Raises:
        GreenllmError: there is no ledger, an option is wrong or a file cannot be written.
    """
    check_group(group_by)
    check_plot(plot)
    period = read_period(since, until)
    ledger = open_ledger(ledger_path(data_dir))
    try:
        found = collect(ledger, period, group_by)
        if csv is not None:
            write_csv(csv, ledger, period)
    finally:
        ledger.close()
    print_report(make_console(), found)
    if json is not None:
        write_json(json, found)
    if plot is not None:
        write_plot(plot, found)


def open_ledger(path: Path) -> Ledger:
    """Open a ledger for reading.

    Raises:
        GreenllmError: there is none, or it cannot be used.
    """
    if not os.path.exists(path):
        raise GreenllmError(f"no ledger at {path}: `greenllm serve` writes one, or give --data-dir")
    return Ledger(path, read_only=True)
