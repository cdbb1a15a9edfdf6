"""Starts a peer's server on given cores, waits until it answers, and stops it with all it started.

Contract: a server that does not answer in time, or ends, is a `ServerError` with the end of its
log. Whatever happens, nothing that was started is left running.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from evals.load.client import NoModelError, TargetError, first_model
from greenllm.core import GreenllmError

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL = 1500


class ServerError(GreenllmError):
    """A peer's server did not start."""


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], port: int, log: Path, cores: set[int]
) -> Iterator[tuple[str, str, int]]:
    """A server: its URL, the name of its model, its process."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        yield url, asyncio.run(_model_when_ready(url, process, log)), process.pid
    finally:
        stop(process)


async def _model_when_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ServerError(f"ended with {process.returncode}: {_tail(log)}")
        try:
            return await first_model(url, None, timeout_s=5.0)
        except NoModelError:
            return ""
        except TargetError:
            pass
        await asyncio.sleep(0.5)
    raise ServerError(f"did not answer within {START_TIMEOUT_S:g} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server's whole session: asked first, then killed."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    # What has left the group has lost its parent, but not its session.
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
