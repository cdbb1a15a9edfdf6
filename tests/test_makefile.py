"""`make serve` hands on what was set, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("MODEL", "QUANT", "PORT", "ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
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
    done = subprocess.run(
        ["make", "--dry-run", "serve", *given],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in OURS},
        capture_output=True,
        text=True,
        check=True,
    )
    program, command, *words = done.stdout.splitlines()[-1].split()
    assert (Path(program).name, command) == ("greenllm", "serve")
    assert words == options


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_help_lists_every_target() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[1] for line in said.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == set(phony.split())
