"""How figures and tables look on the command line.

Contract: what is unknown prints as a dash, never as 0; everything else has four significant
digits, or all its whole ones from a thousand on. Text is printed as it is: a model's name is
neither markup nor an emoji. A table that is wider than the terminal comes in parts, one below the
other, each with the first column; figures are never folded, and text not below `_LEAST_TEXT`.

Not covered: units, which belong into the headings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

UNKNOWN = "—"
PIPE_WIDTH = 160
_LEAST_TEXT = 24  # columns of a terminal; less only where all of a text is shorter


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
    """Print a heading of its own, which may be wider than the table, and the table."""
    console.print(heading, style="bold", soft_wrap=True)
    for part in _parts(table, console.width):
        console.print(part)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table, or tables with its first column and as many others as fit."""
    first, *others = table.columns
    part: list[Column] = []
    for column in others:
        if part and _least_width([first, *part, column]) > width:
            yield _part(table, [first, *part])
            part = []
        part.append(column)
    yield _part(table, [first, *part])


def _least_width(columns: Sequence[Column]) -> int:
    """How narrow a table of these can be; each has a blank on both sides, and one is between."""
    return sum(_least(column) + 3 for column in columns) + 1


def _least(column: Column) -> int:
    texts = (str(column.header), *map(str, column.cells))
    longest = max(cell_len(text) for text in texts)
    return longest if column.no_wrap else min(longest, _LEAST_TEXT)


def _part(table: Table, columns: Sequence[Column]) -> Table:
    part = Table(box=table.box)
    for column in columns:
        part.add_column(
            column.header,
            justify=column.justify,
            overflow="fold",
            no_wrap=column.no_wrap,
            min_width=_least(column),
        )
    cells = zip(*(column.cells for column in columns), strict=True)
    for row, texts in zip(table.rows, cells, strict=True):
        part.add_row(*texts, end_section=row.end_section)
    return part
