"""CUDA is asked in a process of its own, and only where there is a driver."""

import subprocess
import sys
from pathlib import Path

import pytest

from greenllm.energy.meters.cuda import cuda_uuids


def _no_process(*args: object, **kwargs: object) -> None:
    raise AssertionError("nobody needs to be asked")


def test_without_a_driver_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _no_process)
    assert cuda_uuids(tmp_path) == ()


def _asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> tuple[str, ...] | None:
    (tmp_path / "nvidiactl").touch()
    run = subprocess.run

    def instead(command: list[str], **options: object) -> object:
        assert command[0] == sys.executable
        assert Path(command[-1]).name == "cuda.py"
        return run([sys.executable, "-c", program], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", instead)
    return cuda_uuids(tmp_path)


def test_devices_come_in_cudas_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked(tmp_path, monkeypatch, "print('b'); print('a')") == ("b", "a")


def test_a_driver_that_does_not_answer_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _asked(tmp_path, monkeypatch, "raise SystemExit(1)") is None


def test_without_cudas_library_there_is_no_device(tmp_path: Path) -> None:
    """The real program, on whatever machine this is."""
    (tmp_path / "nvidiactl").touch()
    told = cuda_uuids(tmp_path)
    assert told is None or all(len(uuid) == 36 for uuid in told)
