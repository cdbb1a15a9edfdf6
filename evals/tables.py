"""Markdown tables, declared as columns: a heading, and what stands below it in a row of figures.

Contract: pure. A value that is None or absent is a dash. A column whose cells all begin like
numbers is aligned to the right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = Callable[[Row], str | None]
_NUMBER = re.compile(r"[+-]?[\d.]")
UNKNOWN = "-"


def table(columns: Mapping[str, Column], rows: Iterable[Row], *, unknown: str = UNKNOWN) -> str:
    """The rows under the headings; `unknown` stands where a column has None."""
    found = ([column(row) for column in columns.values()] for row in rows)
    return grid(list(columns), [[unknown if x is None else x for x in line] for line in found])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    rules = [_rule([row[place] for row in rows]) for place in range(len(head))]
    first, *rest = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join([first, f"|{'|'.join(rules)}|", *rest])


def _rule(cells: Sequence[str]) -> str:
    known = [cell for cell in cells if cell not in ("", UNKNOWN)]
    return "---:" if all(map(_NUMBER.match, known)) else "---"


def text(number: float | None, spec: str = "", factor: float = 1.0) -> str:
    """A number by its format; three digits or all whole ones without any."""
    if number is None:
        return UNKNOWN
    return format(factor * number, spec) if spec else short(factor * number)


def value(path: str, spec: str = "", factor: float = 1.0) -> Column:
    """A figure of the row, or of a mapping in it, as `text` has it: `value("p95.s", ".1f")`."""

    def column(row: Row) -> str | None:
        found = _at(row, path)
        return found if found is None or isinstance(found, str) else text(found, spec, factor)

    return column


def ratio(path: str, spec: str = ".2f") -> Column:
    """A median with what stands beside it, as `evals.studies.ratios` has it."""

    def column(row: Row) -> str | None:
        found = _at(row, path)
        if found is None:
            return None
        median, low, high = (format(found[name], spec) for name in ("median", "q1", "q3"))
        return f"{median} ({low} to {high})"

    return column


def _at(row: Row, path: str) -> Any:
    found: Any = row
    for name in path.split("."):
        found = None if found is None else found.get(name)
    return found


def short(number: float) -> str:
    """Three significant digits, or all whole ones."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def rows_of(nested: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """The innermost mappings, each with the keys that lead to it under these names."""
    name, *more = names
    for key, below in nested.items():
        for row in rows_of(below, *more) if more else [below]:
            yield {name: key, **row}
