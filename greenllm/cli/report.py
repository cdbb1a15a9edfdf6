"""`greenllm report`: what the ledger holds, and whether it adds up.

Contract: reads only; a server may be writing meanwhile. Every mistake in the options is found
before the first receipt is read and is one line. Not covered: several ledgers at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from greenllm.cli.options import DataDir
from greenllm.cli.report_data import (
    FOREVER_S,
    Period,
    Report,
    check_group,
    collect,
)
from greenllm.cli.report_export import check_plot, csv_writer, write_json, write_plot
from greenllm.cli.report_tables import print_report
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.ledger import Ledger
from greenllm.energy.period import parse_moment
from greenllm.energy.receipt import Receipt
from greenllm.figures import make_console
from greenllm.places import ledger_path

PROGRESS_AFTER_S = 2.0


def _period(since: str | None, until: str | None) -> Period:
    try:
        since_s = parse_moment("--since", since, 0.0)
        return Period(since_s, parse_moment("--until", until, FOREVER_S))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def report(
    data_dir: DataDir = None,
    group_by: Annotated[
        str, typer.Option(help="model, adapter, key, hour, outcome or endpoint.")
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
    period = _period(since, until)
    ledger = open_ledger(ledger_path(data_dir))
    try:
        found = _read(ledger, period, group_by, csv)
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


def _read(ledger: Ledger, period: Period, group_by: str, csv: Path | None) -> Report:
    rows = ledger.sums(since_s=period.since_s, until_s=period.until_s)
    total = sum(row.requests for row in rows)
    with ExitStack() as stack:
        write = stack.enter_context(csv_writer(csv))
        advance = stack.enter_context(progress(total))

        def see(receipts: list[Receipt]) -> None:
            write(receipts)
            advance(len(receipts))

        return collect(ledger, period, group_by, see)


@contextmanager
def progress(
    total: int, *, clock: Callable[[], float] = time.monotonic, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that only shows itself when things take long."""
    where = console or Console(stderr=True)
    bar = Progress(console=where, transient=True, disable=not where.is_terminal)
    task = bar.add_task("receipts", total=total)
    started_s = clock()

    def advance(count: int) -> None:
        bar.advance(task, count)
        if clock() - started_s >= PROGRESS_AFTER_S:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
