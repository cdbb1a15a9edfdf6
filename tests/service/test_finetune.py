"""`greenllm finetune` as users run it: the tutorial's example, kills, full disks, siblings."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.household import household_rows
from tests.service.processes import Forked
from tests.waiting import PATIENCE_S, until

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
SHORT = ("--data", "example", "--answers", "0", "--steps", "16", "--save-every", "4")
Greenllm = Callable[..., subprocess.CompletedProcess[str]]


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    patience_s = 10 * PATIENCE_S  # training computes for minutes, and on a busy machine for long
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=patience_s, check=False
    )


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "green_report.json").read_text())
    return found


def _active_j_per_token(report: dict[str, Any]) -> float:
    training = report["measures"]["energy"]["by_phase"]["training"]
    return float(training["active_j"]) / float(report["training"]["tokens"])


def _same_weights(one: Path, other: Path) -> bool:
    name = "adapter_model.safetensors"
    return (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, greenllm: Greenllm) -> Path:
    """A short run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finetune") / "whole"
    done = greenllm("finetune", *SHORT, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def _start(folder: Path, environment: dict[str, str], checkpoint: int) -> tuple[Forked, Path]:
    """A run that has just written a checkpoint, and the file with what it says."""
    said, written = folder.with_suffix(".log"), _checkpoint(folder, checkpoint)
    process = Forked(("finetune", *SHORT, "--output", str(folder)), said, said, environment)
    until(lambda: written.exists() or process.poll() is not None, f"checkpoint {checkpoint}")
    assert process.poll() is None, said.read_text()
    return process, said


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"checkpoint-{step}" / "greenllm.json"


def _commands() -> list[list[str]]:
    """The commands of the tutorial's example."""
    text = TUTORIAL.read_text(encoding="utf-8").partition("## Fine-tune\n")[2]
    found = re.search(r"```console\n(.*?)```", text, re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.startswith("$ ")]
    return [shlex.split(line[2:].partition("  #")[0]) for line in lines]


@pytest.mark.slow
def test_the_tutorial_goes_from_examples_to_a_better_answer(
    environment: dict[str, str], server_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    finetune, report = _commands()
    data_dir = {**environment, "GREENLLM_DATA_DIR": str(tmp_path)}
    done = _run([sys.executable, "-m", *finetune], data_dir)
    assert done.returncode == 0, done.stderr
    name = finetune[finetune.index("--name") + 1]
    folder = tmp_path / "adapters" / name
    assert report == ["cat", f"~/.local/share/greenllm/adapters/{name}/green_report.md"]
    page = (folder / "green_report.md").read_text()
    found = _report(folder)
    assert "## Energy by phase" in page
    assert found["quality"]["exact_match"]["before"]["high"] < 0.5
    assert found["quality"]["exact_match"]["after"]["low"] > 0.5
    server = server_in(tmp_path)
    rows = household_rows()[-20:]
    right = {model: _right(server, model, rows) for model in ("bundled", name)}
    assert right["bundled"] == 0
    assert right[name] >= 15


def _right(server: Any, model: str, rows: list[dict[str, str]]) -> int:
    answers = [
        server.openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": row["prompt"]}], temperature=0
        )
        .choices[0]
        .message.content
        for row in rows
    ]
    return sum(answer == row["completion"] for answer, row in zip(answers, rows, strict=True))


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_weights(
    greenllm: Greenllm, environment: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process, _ = _start(folder, environment, 8)
    process.kill()
    process.wait()
    assert not (folder / "green_report.json").exists()
    done = greenllm("finetune", *SHORT, "--output", str(folder), "--resume")
    assert done.returncode == 0, done.stderr
    assert _same_weights(folder, whole)
    assert _report(folder)["training"]["losses"] == _report(whole)["training"]["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_does_what_an_interrupt_does(
    environment: dict[str, str], tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "told"
    process, said = _start(folder, environment, 4)
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does, and shells whose terminal closes
    assert process.wait() == 0, said.read_text()
    report = _report(folder)
    assert (report["status"], report["reason"]) == ("stopped", "interrupt")
    assert (folder / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(
    greenllm: Greenllm, environment: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    process, said = _start(folder, environment, 4)
    # As on a full disk, the kernel refuses to write more than so many bytes.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    code, errors = process.wait(), said.read_text()
    assert code == 2, errors
    assert "cannot write" in errors
    assert "--resume" in errors
    assert _checkpoint(folder, 4).exists()
    done = greenllm("finetune", *SHORT, "--output", str(folder), "--resume")
    assert done.returncode == 0, done.stderr
    assert _same_weights(folder, whole)


@pytest.mark.slow
def test_two_processes_train_one_adapter(
    environment: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2"]  # fmt: skip
    options = ("--data", "example", "--answers", "0", "--steps", "20", "--batch-size", "4")
    command = [*launch, "-m", "greenllm", "finetune", *options, "--output", str(folder)]
    done = _run(command, {**environment, "ACCELERATE_USE_CPU": "1"})
    assert done.returncode == 0, done.stderr
    found = _report(folder)
    assert found["training"]["steps"] == 20
    assert found["training"]["tokens"] > 20 * 2 * 4 * 50, "both processes' tokens are counted"
    assert found["quality"]["validation_loss_change"]["high"] < -1
    both, alone = (_active_j_per_token(report) for report in (found, _report(whole)))
    assert both > 0.75 * alone, "the sibling's joules are the run's"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--output", "out"), "--data is needed"),
        (("--data", "example"), "give --name"),
        (("--data", "missing.jsonl", "--output", "out"), "cannot read missing.jsonl"),
        (("--data", "example", "--output", "out", "--rank", "0"), "--rank must be greater"),
        (("--data", "example", "--output", "out", "--method", "magic"), "--method must be one of"),
        (("--data", "example", "--output", "out", "--zone", "Atlantis"), "--zone Atlantis"),
        (("--data", "example", "--output", "out", "--meter", "sun"), "--meter sun"),
        (("--data", "example", "--output", "out", "--model", "./none"), "no folder ./none"),
    ],
)
def test_what_cannot_run_is_one_line(
    greenllm: Greenllm, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    done = greenllm("finetune", *options, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("greenllm: ")]
    assert len(lines) == 1, done.stderr
    assert reason in lines[0]
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
