"""`greenllm` in processes of its own, forked from one that has its imports behind it.

Importing torch, transformers and OpenVINO is most of a start's time. A fork has them at once, and
is a process like any other: its signals, sockets, files, CPU time and end are its own. What it
cannot show is a start from nothing: `command` is for that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
PRELOADED = ["serving.server", "finetune.run", "transformers.modeling_utils", "openvino"]


def environment(**more: str) -> dict[str, str]:
    """No GPU, one thread, no options from outside, no network, no sharing with other tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENLLM_")}
    fixed = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    fixed["GREENLLM_ROSTER"] = "off"
    return {**kept, **fixed, **more}


def command(*arguments: str) -> list[str]:
    """A command line that starts from nothing."""
    return [sys.executable, "-m", "greenllm", *arguments]


class Forked:
    """A running command; its face is that of `subprocess.Popen`, its output goes into files."""

    def __init__(
        self,
        arguments: Sequence[str],
        stdout: Path,
        stderr: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        where = (str(stdout), str(stderr), str(cwd or Path.cwd()))
        self._process = _forks().Process(target=_main, args=(list(arguments), dict(env), *where))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, -N after signal N, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = PATIENCE_S) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("greenllm", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        process = Forked(arguments, out, err, env or environment(), cwd)
        try:
            code = process.wait(5 * PATIENCE_S)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


@cache
def _forks() -> ForkServerContext:
    """The process to fork from, one for each process of pytest."""
    assert all(map(find_spec, PRELOADED[:2])), "what is gone would be passed over in silence"
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, environment(PYTHONPATH=str(ROOT)), clear=True):
        forkserver.ensure_running()
    return forks


def _main(arguments: list[str], env: dict[str, str], stdout: str, stderr: str, cwd: str) -> None:
    """In the fork: become `python -m greenllm` with these arguments."""
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["greenllm", *arguments]
    from greenllm.__main__ import main

    main()
