"""`make serve` hands on what was set, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
OURS = ("MODEL", "QUANT", "PORT", "ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")


def make(*arguments: str) -> str:
    """What make prints, also where another make has started the tests."""
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ([], []),
        (["QUANT=int8"], ["--quantize", "int8"]),
        (["MODEL=./m", "PORT=8080"], ["./m", "--port", "8080"]),
        (["ARGS=--zone FRA"], ["--zone", "FRA"]),
        (["PORT="], []),
    ],
)
def test_only_what_is_set_is_passed(given: list[str], options: list[str]) -> None:
    program, command, *words = make("--dry-run", "serve", *given).splitlines()[-1].split()
    assert (Path(program).name, command) == ("greenllm", "serve")
    assert words == options


def test_the_help_lists_every_target() -> None:
    listed = {line.split()[1] for line in make().splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == set(phony.split())
