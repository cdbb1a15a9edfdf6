"""A server of the product in a process of its own, for as long as something asks it.

Contract: `running_server` yields when the server is ready, and ends it whatever happens; what it
has said is in the error if it does not get ready. Not covered: other servers, and remote ones.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from evals.entry import BenchError
from greenllm.model.files import check_folder
from greenllm.model.info import LoadError
from greenllm.model.options import resolve

_START_S = 120.0
_STOP_S = 60.0


def require_model(model: str) -> None:
    """Refuse a model that is not there, before anything is started.

    Raises:
        LoadError: there is none.
    """
    try:
        check_folder(resolve(model), allow_pickle=False)
    except LoadError as error:
        raise LoadError(f"--model: {error}") from error


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(model: str, data_dir: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server with these options: its URL and process id.

    Raises:
        GreenllmError: there is no such model, or the server does not start.
    """
    require_model(model)
    port = free_port()
    command = [sys.executable, "-m", "greenllm", "serve", model, "--port", str(port)]
    command += ["--data-dir", str(data_dir), *options]
    # A file, not a pipe: nobody would read the pipe, and a server that filled it would stand still.
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stderr=said) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process, said)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(timeout=_STOP_S)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], said: IO[str]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            said.seek(0)
            raise BenchError(f"the server ended: {said.read().strip()}")
        with suppress(OSError), direct.open(f"{url}/ready", timeout=2):
            return
        time.sleep(0.1)
    raise BenchError("the server did not become ready")
