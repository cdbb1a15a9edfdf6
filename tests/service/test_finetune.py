"""`greenllm finetune` as users run it: the README's walk-through, kills, full disks, siblings."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.household import household_rows

README = Path(__file__).parents[2] / "README.md"
SHORT = ("--data", "example", "--answers", "0", "--steps", "16", "--save-every", "4")
Environment = Callable[[], dict[str, str]]


def _greenllm(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "greenllm", *arguments]


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "green_report.json").read_text())
    return found


def _same_weights(one: Path, other: Path) -> bool:
    name = "adapter_model.safetensors"
    return (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A short run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finetune") / "whole"
    done = _run(_greenllm("finetune", *SHORT, "--output", str(folder)), environment)
    assert done.returncode == 0, done.stderr
    return folder


def _start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = _greenllm("finetune", *SHORT, "--output", str(folder))
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s, f"no {path}"
        time.sleep(0.005)


def _commands() -> list[list[str]]:
    """The commands of the README's walk-through."""
    text = README.read_text(encoding="utf-8").partition("## Fine-tuning")[2]
    found = re.search(r"```console\n(.*?)```", text, re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.startswith("$ ")]
    return [shlex.split(line[2:].partition("  #")[0]) for line in lines]


@pytest.mark.slow
def test_the_readme_goes_from_examples_to_a_better_answer(
    environment: dict[str, str], server_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    finetune, report, serve = _commands()
    data_dir = {**environment, "GREENLLM_DATA_DIR": str(tmp_path)}
    done = _run(_greenllm(*finetune[1:]), data_dir)
    assert done.returncode == 0, done.stderr
    name = finetune[finetune.index("--name") + 1]
    folder = tmp_path / "adapters" / name
    assert report == ["cat", f"~/.local/share/greenllm/adapters/{name}/green_report.md"]
    page = (folder / "green_report.md").read_text()
    found = _report(folder)
    assert "## Energy by phase" in page
    assert found["quality"]["exact_match"]["before"]["high"] < 0.5
    assert found["quality"]["exact_match"]["after"]["low"] > 0.5
    assert serve[:2] == ["greenllm", "serve"]
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
    environment: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = _start(folder, environment)
    _wait_for(folder / "checkpoints" / "checkpoint-8" / "greenllm.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "green_report.json").exists()
    resume = _greenllm("finetune", *SHORT, "--output", str(folder), "--resume")
    done = _run(resume, environment)
    assert done.returncode == 0, done.stderr
    assert _same_weights(folder, whole)
    assert _report(folder)["training"]["losses"] == _report(whole)["training"]["losses"]


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(
    environment: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    process = _start(folder, environment)
    _wait_for(folder / "checkpoints" / "checkpoint-4" / "greenllm.json", process)
    # As on a full disk, the kernel refuses to write more than so many bytes.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "cannot write" in errors
    assert "--resume" in errors
    assert (folder / "checkpoints" / "checkpoint-4" / "greenllm.json").exists()
    done = _run(_greenllm("finetune", *SHORT, "--output", str(folder), "--resume"), environment)
    assert done.returncode == 0, done.stderr
    assert _same_weights(folder, whole)


@pytest.mark.slow
def test_two_processes_train_one_adapter(environment: dict[str, str], tmp_path: Path) -> None:
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
    phases = found["measures"]["energy"]["by_phase"]
    training = phases["training"]
    assert training["active_j"] > training["foreign_j"], "the sibling's joules are the run's"


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
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {**environment, "PYTHONPATH": str(README.parent)}
    done = _run(_greenllm("finetune", *options), root)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("greenllm: ")]
    assert len(lines) == 1, done.stderr
    assert reason in lines[0]
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) in ([], ["out"])
