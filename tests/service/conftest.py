"""The real server in a process of its own, and what the tests need to look into it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import openai
import pytest

from tests.client import Client
from tests.service import processes
from tests.service.processes import Forked
from tests.waiting import PATIENCE_S, until

_URL = re.compile(r"http://localhost:(\d+)/")


class Server(Client):
    """A `greenllm serve` process; the meter is the modelled one whatever this machine has."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.data_dir = folder
        self.log = folder / "server.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._closing = contextlib.ExitStack()

    def start(self) -> Server:
        """Start and wait until `/ready` says so."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self._process = self._launch()
        self.url = until(self._announced, "the server's address")
        self.http = self._closing.enter_context(
            httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)
        )
        self.openai = self._closing.enter_context(self.openai_client("none"))
        until(lambda: self.http.get("/ready").status_code == 200, "/ready")
        return self

    def _launch(self) -> subprocess.Popen[bytes] | Forked:
        """vLLM starts from nothing: it forks and spawns processes of its own."""
        fixed = ("--port", "0", "--threads", "1", "--device", "cpu", "--meter", "modelled")
        words = ("serve", *fixed, "--data-dir", str(self.data_dir), *self._options)
        env = processes.environment()
        if "vllm" not in self._options:
            return Forked(words, self.log, self.log, env)
        with self.log.open("wb") as log:
            return subprocess.Popen(processes.command(*words), stdout=log, stderr=log, env=env)

    def openai_client(self, api_key: str) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=PATIENCE_S
        )

    def _announced(self) -> str | None:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if self.process.poll() is not None:
            pytest.fail(f"the server did not start:\n{text}")
        found = _URL.search(text)
        return f"http://127.0.0.1:{found[1]}" if found else None

    def __enter__(self) -> Server:
        return self.start() if self._process is None else self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes] | Forked:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        self._closing.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._closing.close()

    def wait(self) -> int:
        """Wait for the end; whatever happened, a server never prints a traceback."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        text = self.log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in text, text
        return code


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Makes servers with options; they are started on entry and stopped at the end."""
    made: list[Server] = []

    def make(*options: str) -> Server:
        made.append(Server(tmp_path_factory.mktemp("server"), *options))
        return made[-1].start()

    yield make
    for server in made:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Iterator[Server]:
    """The server most tests share."""
    with start_server() as shared:
        yield shared
    assert shared.process.returncode == 0


@pytest.fixture(scope="session")
def server_url(server: Server) -> str:
    """Where the shared server listens."""
    return server.url


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., Any]:
    """Looks until a condition holds."""
    return until


@pytest.fixture(scope="session")
def greenllm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a `greenllm` command to its end: `(*arguments, env=None, cwd=None)`."""
    return processes.run


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """Makes a `greenllm` command line that starts from nothing."""
    return processes.command


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of such a command."""
    return processes.environment()


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    """The official client, connected to the shared server."""
    return server.openai


@pytest.fixture(scope="session")
def server_in() -> Iterator[Callable[[Path], Server]]:
    """Starts servers on a data folder of the test's."""
    made: list[Server] = []

    def make(folder: Path) -> Server:
        made.append(Server(folder))
        return made[-1].start()

    yield make
    for server in made:
        server.stop()
