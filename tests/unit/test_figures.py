"""Tables on terminals of several widths: nothing is lost, and nothing becomes unreadable."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from rich.table import Table

from greenllm.figures import make_table, print_table

SESSION = "s-692d6c4a-1f3b9c"
METHOD = "modelled:vcpu-specpower"


def lines_of(table: Table, width: int) -> list[str]:
    """What is printed on a terminal of that width, without the heading."""
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        print_table(console, "Heading", table)
    return [line.rstrip() for line in capture.get().splitlines()[1:]]


def sessions() -> Table:
    """As wide as the widest table of `greenllm report`."""
    figures = [f"figure {i}" for i in range(8)]
    table = make_table(("session", "started", "method", "state", *figures), num_text=4)
    for number in range(2):
        joules = [f"{1000 * number + i:,}.25" for i in range(8)]
        table.add_row(f"{SESSION}{number}", "2026-12-01 03:27", METHOD, "not closed", *joules)
    return table


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_every_cell_is_whole_at_every_width(width: int) -> None:
    lines = lines_of(sessions(), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for number in range(2):
        for i in range(8):
            cell = rf"(?<!\S){1000 * number + i:,}\.25(?!\S)"
            assert len(re.findall(cell, text)) == 1
    assert text.count("2026-12-01 03:27") == text.count(METHOD) == text.count("not closed") == 2


@pytest.mark.parametrize(("width", "parts"), [(60, 5), (80, 3), (100, 2), (120, 2), (220, 1)])
def test_each_part_begins_with_the_first_column(width: int, parts: int) -> None:
    lines = lines_of(sessions(), width)
    assert sum(line.split()[:1] == ["session"] for line in lines) == parts
    for number in range(2):
        assert sum(line.split()[:1] == [f"{SESSION}{number}"] for line in lines) == parts


def test_long_text_is_folded_between_words_and_leaves_figures_their_room() -> None:
    table = make_table(("name", "why", "J"), num_text=2)
    table.add_row("rapl", "no counters of this processor can be read by this user here", "12.25")
    lines = lines_of(table, 50)
    assert max(map(len, lines)) <= 50
    words = " ".join(" ".join(lines).split())
    assert "no counters of this processor" in words
    assert "12.25" in words


def test_sections_stay_in_every_part() -> None:
    table = make_table(("model", *(f"figure {i}" for i in range(8))))
    table.add_row("bundled", *["1"] * 8)
    table.add_section()
    table.add_row("all", *["1"] * 8)
    lines = lines_of(table, 50)
    parts = sum(line.split()[:1] == ["model"] for line in lines)
    assert parts > 1
    rows = [line.split()[0] if line.split() else "" for line in lines]
    assert sum(rows[i : i + 3] == ["bundled", "", "all"] for i in range(len(rows))) == parts


def test_a_single_column_is_a_table() -> None:
    table = make_table(("name",))
    table.add_row("a")
    assert [line.strip() for line in lines_of(table, 80) if line.strip(" ─")] == ["name", "a"]
