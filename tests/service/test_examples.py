"""Each example runs as it is, in a process and a home of its own, and prints real figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each prints, in order; a number in a group is above zero.
PRINTS = {
    "01_serve_and_ask": (
        r"x-energy-joules: (\S+)",
        r"x-carbon-gco2e: (\S+)",
        r"'energy_joules': ([^,]+),",
    ),
    "02_library": (
        r"generate: .+\n  (\S+) J, of which (\S+) J",
        r"  (\S+) tokens, (\S+) g",
        *[r"(?:chat|stream|batch): .+\n  (\S+) J"] * 5,
    ),
    "03_adapters_in_one_batch": (r"base: (\S+) J", r"north: (\S+) J", r"south: (\S+) J"),
    "04_finetune_and_use": (r"(\S+) tokens of training: (\S+) J", r"household: (\S+) J, '."),
    "05_monthly_report": (
        r"bundled: (3) requests, (\S+) J, (\S+) g",
        r":00Z: (\S+) J per token",
        r"meter (\S+) J = requests (\S+) \+ load (\S+) \+",
        r"Sessions: meter = load",
    ),
    "06_compare_two_settings": (
        r"none: (\S+) J per token \((\S+) to (\S+)\)",
        r"int8: (\S+) J per token \((\S+) to (\S+)\)",
        r"int8 / none: (\S+)\n",
    ),
}


def test_every_example_is_run_and_listed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.py\)", readme)) == set(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    env = environment | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    env = {key: value for key, value in env.items() if not key.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=5 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"(?s:.*?)".join(PRINTS[name]), done.stdout)
    assert found is not None, done.stdout
    assert all(float(number) > 0 for number in found.groups())
