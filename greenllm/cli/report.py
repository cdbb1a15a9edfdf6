"""`greenllm report`: what the ledger holds, and whether it adds up.

Contract: reads only; a server may be writing meanwhile. Every mistake in the options is found
before the first receipt is read and is one line. Not covered: several ledgers at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from greenllm.cli.figures import make_console
from greenllm.cli.places import ledger_path
from greenllm.cli.report_data import check_group, collect, read_period
from greenllm.cli.report_export import check_plot, write_csv, write_json, write_plot
from greenllm.cli.report_tables import print_report
from greenllm.core import GreenllmError
from greenllm.energy.ledger import Ledger


@dataclass(frozen=True)
class Export:
    """Files to write, where given."""

    csv: Path | None = None
    json: Path | None = None
    plot: Path | None = None


def run(
    data_dir: Path | None, group_by: str, since: str | None, until: str | None, export: Export
) -> None:
    """Print the report and write the files asked for.

    Raises:
        GreenllmError: there is no ledger, an option is wrong or a file cannot be written.
    """
    check_group(group_by)
    check_plot(export.plot)
    period = read_period(since, until)
    ledger = open_ledger(ledger_path(data_dir))
    try:
        report = collect(ledger, period, group_by)
        if export.csv is not None:
            write_csv(export.csv, ledger, period)
    finally:
        ledger.close()
    print_report(make_console(), report)
    if export.json is not None:
        write_json(export.json, report)
    if export.plot is not None:
        write_plot(export.plot, report)


def open_ledger(path: Path) -> Ledger:
    """Open a ledger for reading.

    Raises:
        GreenllmError: there is none, or it cannot be used.
    """
    if not os.path.exists(path):
        raise GreenllmError(f"no ledger at {path}: `greenllm serve` writes one, or give --data-dir")
    return Ledger(path, read_only=True)
