"""`greenllm compress` with real servers: the smaller model serves, and its bill adds up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

Compress = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--examples", "300", "--meter", "modelled")


@pytest.fixture(scope="module")
def compress(greenllm: Compress) -> Compress:
    """Runs the command."""
    return partial(greenllm, "compress", "bundled")


@pytest.mark.slow
def test_a_pruned_model_serves_and_has_its_bill(
    compress: Compress, greenllm: Compress, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    run = compress(
        "--layers", "11", "--tasks", "generated.upper", "--limit", "8", "--rounds", "1",
        "--steps", "6", "--batch-size", "4", "--output", str(out), *SMALL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "compression.json").read_text())
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 11
    before, after = found["before"], found["after"]
    assert after["parameters"] < before["parameters"] == 4_920_000
    assert after["solved"]["examples"] == before["solved"]["examples"] == 8
    costs = found["costs"]
    assert costs["cost_j"] == pytest.approx(sum(costs["by_phase"].values()))
    assert costs["by_phase"]["training"] > 0
    assert costs["by_phase"]["teacher"] > 0
    assert costs["scoring_j"] > 0
    page = (out / "README.md").read_text()
    assert found["verdict"].capitalize() in page
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing else is left"
    shown = json.loads(greenllm("card", str(out / "compression.json")).stdout)
    assert shown["energy"]["total_j"] == costs["cost_j"]
    assert shown["carbon"]["operational_g"] == found["carbon"]["operational_g"] > 0
    assert (shown["carbon"]["intensity_zone"], shown["carbon"]["embodied_g"]) == ("WORLD", None)
    again = compress("--layers", "11", "--output", str(out))
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_tasks_without_right_answers_are_refused_before_anything_is_spent(
    compress: Compress, tmp_path: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("Once upon a time.")
    out = tmp_path / "small"
    run = compress("--layers", "9", "--tasks", f"perplexity:{text}", "--output", str(out))
    assert run.returncode == 2
    assert "models are compared by accuracy" in run.stderr
    assert not out.exists()
