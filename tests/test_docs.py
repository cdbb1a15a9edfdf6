"""Documentation says what is: reference pages are current, commands, options and links exist.

Not covered: options of other programs; links to other sites; headings of one name.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from greenllm.cli.app import app
from greenllm.cli.lazy import LazyCommand

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, *sorted((ROOT / "docs" / "reference").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SHELLS = {"sh", "bash", "shell"}
SEPARATORS = {"&&", "||", "|", ";", "&"}


def options_by_command() -> dict[str, set[str]]:
    """Spellings of the options of each command; those of the program itself are under ''."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    below = {name: reachable(command) for name, command in root.commands.items()}
    return {"": own(root), **below}


def own(command: Any) -> set[str]:
    """Options of a command itself."""
    whole = command.load() if isinstance(command, LazyCommand) else command
    spellings = {spelling for p in whole.params for spelling in (*p.opts, *p.secondary_opts)}
    return spellings | {"--help"}


def reachable(command: Any) -> set[str]:
    """Options of a command, or of any below it."""
    children = command.commands.values() if isinstance(command, TyperGroup) else ()
    return own(command).union(*(reachable(child) for child in children))


OPTIONS = options_by_command()
ANY_OPTION = set().union(*OPTIONS.values())


def problems(text: str) -> list[str]:
    """What a page says about the command line that is not so."""
    found = [problem for command in commands(text) for problem in problems_of(command)]
    prose = INLINE.sub("", FENCE.sub("", COMMENT.sub("", text)))
    return found + [f"no option {name}" for name in OPTION.findall(prose) if name not in ANY_OPTION]


def commands(text: str) -> Iterator[str]:
    """Command lines of a page: in shell blocks, after `$` in console blocks, and inline."""
    for language, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if language in SHELLS:
                yield line
            elif language == "console" and line.startswith("$ "):
                yield line.removeprefix("$ ")
    yield from INLINE.findall(FENCE.sub("", text))


def problems_of(command: str) -> Iterator[str]:
    """Look at each program of a command line."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        words = command.split()
    for is_separator, group in groupby(words, SEPARATORS.__contains__):
        if not is_separator:
            yield from problems_of_call(list(group))


def problems_of_call(words: list[str]) -> Iterator[str]:
    """Check one call, if it is one of ours; `make serve ARGS=...` hands options on."""
    for word in words:
        if word.startswith("ARGS="):
            yield from unknown_options(word.removeprefix("ARGS=").split(), "serve")
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[1:3] == ["-m", "greenllm"]:
        words = words[2:]
    if not words:
        return
    if words[0].startswith("--"):
        yield from (f"no option {name}" for name in names(words) if name not in ANY_OPTION)
    elif PurePosixPath(words[0]).name == "greenllm":
        yield from problems_of_arguments(words[1:])


def problems_of_arguments(words: list[str]) -> Iterator[str]:
    """Check what follows `greenllm`."""
    name = words[0] if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) else ""
    if name not in OPTIONS:
        yield f"no command greenllm {name}"
    else:
        yield from unknown_options(words, name)


def unknown_options(words: list[str], command: str) -> Iterator[str]:
    for name in names(words):
        if name not in OPTIONS[command]:
            yield f"greenllm {command} has no option {name}"
    if "--serve" in words[:-1]:  # options of a server, in one word
        yield from unknown_options(words[words.index("--serve") + 1].split(), "serve")


def names(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if OPTION.match(word) and " " not in word]


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere, to a file or to a heading."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [
        target for target in LINK.findall(text) if ":" not in target and is_broken(page, target)
    ]


def is_broken(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    found = page.parent / path if path else page
    return not found.exists() or (bool(anchor) and anchor not in anchors(found))


def anchors(page: Path) -> set[str]:
    """What links can call the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text)]
    return {heading.replace(" ", "-") for heading in plain}


def test_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    assert problems(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize(
    "text",
    [
        "Run `greenllm frobnicate`.",
        "Give `--frobnicate`.",
        "Give --frobnicate.",
        "```sh\ngreenllm report --frobnicate=1\n```",
        "```console\n$ X=1 .venv/bin/greenllm report \\\n    --port 8000\n```",
        "```bash\ncd here && python -m greenllm doctor --frobnicate\n```",
        '`make serve ARGS="--frobnicate"`',
    ],
)
def test_what_does_not_exist_is_found(text: str) -> None:
    assert len(problems(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ greenllm report --group-by hour  # --frobnicate\nx --frobnicate\n```",
        "```python\nfrom greenllm import core\n```",
        "`pip install --editable .` and `docker run --gpus all`",
        '`greenllm serve --no-prefix-cache`, `--threads 0`, `ARGS="--zone FRA"`, `greenllm`',
        "<!-- --frobnicate --> | --- | and --port",
    ],
)
def test_what_exists_and_what_is_not_ours_is_not(text: str) -> None:
    assert problems(text) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Over, here\n[a](page.md#over-here) [b](gone.md) [c](https://example.org) [d](#top)"
    )
    assert broken_links(page) == ["gone.md", "#top"]
