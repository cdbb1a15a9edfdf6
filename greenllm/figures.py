"""How figures and tables look on the command line.

Contract: what is unknown prints as a dash, never as 0; everything else has four significant
digits, or all its whole ones from a thousand on. Text is printed as it is: a model's name is
neither markup nor an emoji.

Not covered: units, which belong into the headings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime

from rich import box
from rich.console import Console
from rich.table import Table

UNKNOWN = "—"
PIPE_WIDTH = 160


def number(value: float | None) -> str:
    """A figure in plain decimals, or the dash."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def moment(at_s: float) -> str:
    """Local time of a moment in Unix seconds, to the minute."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M")


def make_console() -> Console:
    """Standard output; in a pipe there is room, so that no table is cut at 80 columns."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    width = PIPE_WIDTH if wide else None
    return Console(markup=False, highlight=False, emoji=False, width=width)


def make_table(columns: Sequence[str], *, num_text: int = 1) -> Table:
    """A table whose first `num_text` columns are text and whose others are figures."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, heading in enumerate(columns):
        is_text = i < num_text
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
        )
    return table


def print_table(console: Console, heading: str, table: Table) -> None:
    """Print a heading of its own, which may be wider than the table."""
    console.print(heading, style="bold", soft_wrap=True)
    console.print(table)
