"""`greenllm tune` with real servers: what it chooses was measured, and serves."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from greenllm.config import load
from serving.config import ServeConfig

Tune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tune(greenllm: Tune) -> Tune:
    """Runs the command."""
    return partial(greenllm, "tune")


@pytest.mark.slow
def test_a_search_ends_with_options_to_serve(tune: Tune, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    run = tune(
        "bundled", "--space", "quantize=none;speculative=off,draft_model,early_exit",
        "--tasks", "generated.upper", "--few", "8", "--many", "16", "--meter", "modelled",
        "--quality-floor", "0.5", "--output", str(out),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "tuning.json").read_text())
    chosen = found["chosen"]
    assert chosen["num_examples"] == 16
    assert chosen["quality"]["value"] >= 0.5
    last = [t for t in found["trials"] if t["num_examples"] == 16 and t["error"] is None]
    assert chosen["joules_per_token"] == min(t["joules_per_token"] for t in last)
    refused = [trial for trial in found["trials"] if trial["error"] is not None]
    assert {trial["setting"]["speculative"] for trial in refused} == {"draft_model"}
    assert all(trial["joules_per_token"] is None for trial in refused)
    assert found["spent_j"] == pytest.approx(sum(t["spent_j"] for t in found["trials"]))
    assert all(trial["spent_j"] > 0 for trial in found["trials"])
    options = tomllib.loads((out / "serve.toml").read_text())
    assert options == {"model": "bundled", **chosen["setting"]}
    assert load(ServeConfig, flags={}, file=out / "serve.toml").quantize == options["quantize"]
    assert (out / "tuning.svg").exists()
    again = tune("bundled", "--output", str(out))
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--space", "colour=red"), "greenllm serve has no option --colour"),
        (("--tasks", "perplexity:none.txt"), "cannot read none.txt"),
        (("--quality-floor", "2"), "--quality-floor must be in [0, 1]"),
        (("--few", "9", "--many", "3"), "--many 3 must be at least --few 9"),
        (("--meter", "nvml"), "--meter nvml"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    tune: Tune, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    run = tune("bundled", "--output", str(tmp_path / "out"), *options)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr
