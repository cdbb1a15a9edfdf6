"""Servers in processes of their own, for as long as something asks them.

Contract: a server that ends, or does not answer in time, is a `BenchError` with the end of what it
said. Whatever happens, nothing that was started is left running: first the server is asked to end,
then, or at a second interrupt, everything in its session is killed. A server whose asker was killed
is asked to end, too. Not covered: servers elsewhere.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from evals.entry import BenchError
from greenllm.interrupts import ended_with_parent
from greenllm.model.files import check_folder
from greenllm.model.info import LoadError
from greenllm.model.options import resolve

_START_S, _STOP_S = 600.0, 60.0
_TAIL = 1500
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Answer = TypeVar("Answer")


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
def running_server(
    model: str, data_dir: Path, *options: str, tree: Path | None = None
) -> Iterator[tuple[str, int]]:
    """`greenllm serve` with these options: its URL and process id.

    With `tree`, it is the code of another checkout.

    Raises:
        GreenllmError: there is no such model, or the server does not start.
    """
    require_model(model)
    port = free_port()
    command = [sys.executable, "-m", "greenllm", "serve", model, "--port", str(port)]
    environment = {} if tree is None else {"PYTHONPATH": str(tree)}
    command += ["--data-dir", str(data_dir), *options]
    with running(command, ready_on(port), environment=environment) as started:
        yield started


def ready_on(port: int) -> Callable[[], str | None]:
    """Tells the URL of a server of this machine, once it takes requests."""
    url = f"http://127.0.0.1:{port}"

    def ready() -> str | None:
        with suppress(OSError), _DIRECT.open(f"{url}/ready", timeout=2):
            return url
        return None

    return ready


@contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], Answer | None],
    *,
    environment: Mapping[str, str] | None = None,
    start_s: float = _START_S,
) -> Iterator[tuple[Answer, int]]:
    """A server: what `ready` said at last, and its process id.

    Raises:
        BenchError: it does not start.
    """
    # A file, not a pipe: nobody would read the pipe, and a server that filled it would stand still.
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ended_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            yield _wait_until_ready(process, ready, log, start_s), process.pid
        finally:
            _stop(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], Answer | None], log: Path, start_s: float
) -> Answer:
    deadline_s = time.monotonic() + start_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise BenchError(f"the server ended with {process.returncode}: {_tail(log)}")
        if (answer := ready()) is not None:
            return answer
        time.sleep(0.1)
    raise BenchError(f"the server was not ready within {start_s:g} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    finally:
        _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    # What it has started may have left its group and lost its parent, but not its session.
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
    process.kill()
    process.wait()
