"""Writes `docs/reference` from the code: `python docs/generate.py`, or `--check` in a test.

Contract: the same code gives the same pages, on any machine. `--check` writes nothing, names every
page that is stale and exits with 1. Not covered: the pages beside this file, which people write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from generate_http import http_page, metrics_page
from generate_library import library_page
from generate_limits import limits_page
from typer.core import TyperCommand, TyperGroup

from greenllm.cli.app import app
from greenllm.cli.lazy import LazyCommand
from greenllm.scorecard.schema import card_schema

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
SCHEMA = "score_card.schema.json"
WIDTH = 100
NOTICE = "<!-- Written by `make docs`; a test compares it with the code. -->\n<!-- fmt: off -->\n\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check all pages; the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    only_check = parser.parse_args(arguments).check
    stale = [path for path, text in pages().items() if _read(path) != text]
    for path in stale:
        if not only_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale, run `make docs`' if only_check else 'written'}")
    return 1 if stale and only_check else 0


def pages() -> dict[Path, str]:
    """Every page, and the schema of the score card, by its file."""
    texts = {
        "cli.md": cli_page(),
        "http.md": http_page(),
        "library.md": library_page(),
        "limits.md": limits_page(),
        "metrics.md": metrics_page(),
    }
    schema = json.dumps(card_schema(), indent=2, ensure_ascii=False) + "\n"
    found = {REFERENCE / name: NOTICE + text for name, text in texts.items()}
    return {**found, REFERENCE / SCHEMA: schema}


def cli_page() -> str:
    """Every command's `--help`."""
    parts = ["# The command line"]
    for name, text in helps(typer.main.get_command(app), "greenllm"):
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def helps(command: object, name: str) -> Iterator[tuple[str, str]]:
    """A command and those below it, with their help as plain text."""
    if isinstance(command, LazyCommand):
        command = command.load()
    if not isinstance(command, TyperCommand | TyperGroup):
        raise TypeError(f"{name} is not a typer command")
    # Boxes and colours depend on the terminal and on rich's version.
    command.rich_markup_mode = None
    context = typer.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield name, command.get_help(context)
    if isinstance(command, TyperGroup):
        for child, below in command.commands.items():
            yield from helps(below, f"{name} {child}")


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
