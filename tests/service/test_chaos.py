"""Short forms of `python -m evals.chaos` and `python -m evals.soak`, with servers of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.processes import ROOT, environment
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.slow


def ended(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that has come to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"evals.{module}", *words],
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE_S,
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
    )


def run(module: str, output: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, result and page of a command."""
    done = ended(module, "--output", str(output), *words, cwd=output)
    assert (output / f"{module}.json").exists(), done.stderr
    return done.returncode, json.loads((output / f"{module}.json").read_text()), done.stdout


def test_promises_are_kept_under_faults(tmp_path: Path) -> None:
    words = ("--seconds-each", "0.5", "--health-bound-s", "0")
    faults = ["ledger-moved", "step-raises", "vanishing-clients", "engine-dies"]
    code, result, page = run("chaos", tmp_path, *words, "--faults", ",".join(faults))
    assert (code, result["broken"]) == (0, []), page
    rows = result["faults"]
    assert [row["fault"] for row in rows] == faults
    assert all(row["accepted"] > 0 for row in rows)
    assert all(row["wrong"] == row["without_one_row"] == 0 for row in rows)
    assert len(result["sessions"]) == 2, "one before the engine died, one after it"
    assert all(one["residual"] <= 1e-6 for one in result["sessions"])
    assert "Every promise was kept." in page


def test_growth_is_told_and_held_against_its_bound(tmp_path: Path) -> None:
    words = ("--minutes", "0.1", "--rate-scale", "0.3", "--every-s", "0.2", "--job-steps", "0")
    code, result, page = run("soak", tmp_path, *words, "--bound-mb-per-hour=-1e12")
    assert code == 1
    assert "memory grows by at most" in page
    assert result["requests"]["answered"] > 0
    assert result["requests"]["adapters_loaded"] > 0
    assert len(result["hours"]) == len(result["samples"]["threads"])
    assert min(result["samples"]["resident memory, MB"]) > 50
    assert (tmp_path / "soak.svg").read_text().startswith("<?xml")


def test_bodies_with_mistakes_get_error_objects() -> None:
    done = ended("chaos.mutate", "--cases", "400", "--seed", "7", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| /v1/chat/completions |" in done.stdout
