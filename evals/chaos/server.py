"""The server that faults are injected into: started, told, limited, killed, started again.

Contract: it keeps its port and its data folder over all its starts. Whatever happens, nothing is
left running (see `evals.servers`).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from evals.entry import BenchError
from evals.servers import free_port, ready_on, running

# What makes the same answers whatever else is in a batch, and a sensor that can be told to fail.
_OPTIONS = (
    *("--quantize", "none", "--dtype", "float32", "--kv-dtype", "float32", "--threads", "1"),
    *("--speculative", "off", "--device", "cpu", "--meter", "rapl", "--roster", "off"),
)
_TELL_S, _END_S, _LOOK_EVERY_S = 60.0, 300.0, 0.05


class ChaosServer:
    """See the module; one at a time runs."""

    def __init__(self, model: str, folder: Path, *options: str) -> None:
        self.folder = folder
        self.pid = 0
        self.port = free_port()
        self.num_starts = self.num_asides = 0
        self._words = ["serve", model, "--port", str(self.port), "--data-dir", str(folder)]
        self._words += [*_OPTIONS, *options]
        self._stack = ExitStack()
        self._orders: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ledger(self) -> Path:
        """Its ledger's file."""
        return self.folder / "ledger.sqlite"

    def aside(self) -> Path:
        """Another place for its ledger's file; those that lie there are read at the end."""
        self.num_asides += 1
        return self.folder / f"aside-{self.num_asides}.sqlite"

    def ledgers(self) -> list[Path]:
        """Every file that its rows are in."""
        return [*sorted(self.folder.glob("aside-*.sqlite")), self.ledger]

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._end() is None

    def _end(self) -> os.waitid_result | None:
        """How it ended; it stays to be waited for by those who have started it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)

    def start(self) -> None:
        """Start it, and wait until it takes requests and orders.

        Raises:
            BenchError: it does not start.
        """
        self.num_starts += 1
        path = self.folder / f"orders-{self.num_starts}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            command = [sys.executable, "-m", "evals.chaos.wrapped", str(path), *self._words]
            _, self.pid = self._stack.enter_context(running(command, ready_on(self.port)))
            listener.settimeout(_TELL_S)
            self._orders = self._stack.enter_context(listener.accept()[0])
            self._orders.settimeout(_TELL_S)

    def tell(self, **switches: Any) -> None:
        """Turn switches of its wrapper (see `wrapped`), and wait until they are turned.

        Raises:
            BenchError: it does not answer.
        """
        try:
            assert self._orders is not None
            self._orders.sendall(json.dumps(switches).encode() + b"\n")
            if self._orders.recv(64) != b"done\n":
                raise OSError("it has ended")
        except OSError as error:
            raise BenchError(f"the server takes no orders: {error}") from error

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it; one that does not end is killed."""
        killed_at_s = time.monotonic() + _END_S
        while (found := self._end()) is None:
            if time.monotonic() > killed_at_s:
                self.signal(signal.SIGKILL)
            time.sleep(_LOOK_EVERY_S)
        self.close()
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def stop(self) -> int:
        """End it as a service manager does; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Leave nothing running."""
        self._stack.close()

    @contextmanager
    def limited(self, what: int, most: int) -> Iterator[None]:
        """Have a limit of the kernel for a while, such as `resource.RLIMIT_NOFILE`."""
        before = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (most, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.pid, what, before)

    def num_descriptors(self) -> int:
        """Files and sockets that it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@asynccontextmanager
async def chaos_server(model: str, folder: Path, *options: str) -> AsyncIterator[ChaosServer]:
    """A server for as long as it is needed; at the end none is left, however often it started."""
    server = ChaosServer(model, folder, *options)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.close)
