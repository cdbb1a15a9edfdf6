"""The table of commands: whole, true, and imported row by row."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from typer.testing import CliRunner

from greenllm import __version__
from greenllm.cli.app import COMMANDS, app
from tests.waiting import PATIENCE_S


@pytest.mark.parametrize("path", COMMANDS)
def test_every_row_names_a_command_and_prints_its_help(path: str) -> None:
    result = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    text = click.unstyle(result.output)
    assert COMMANDS[path].help.partition("\n")[0] in text
    positional = COMMANDS[path].positional
    assert positional is None or f"[{positional}]" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "--help"], ["nothing"]])
def test_the_help_of_the_program_imports_no_command(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from greenllm.__main__ import main\n"
        f"sys.argv = ['greenllm', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('serving', 'finetune', 'evals', 'torch') if n in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_version_is_printed_alone() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


def test_a_misspelt_command_is_told_what_was_meant() -> None:
    result = CliRunner().invoke(app, ["serv"])
    assert result.exit_code == 2
    assert "Did you mean 'serve'?" in click.unstyle(result.output)
