"""The real server in a process of its own, and what the tests need to look into it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import openai
import pytest

from greenllm.energy.ledger import Ledger, Session
from greenllm.energy.receipt import Receipt

MODEL = "bundled"
START_TIMEOUT_S = 120.0
T = TypeVar("T")
_URL = re.compile(r"http://localhost:(\d+)/")


def _until(condition: Callable[[], T | None], what: str, timeout_s: float = 60.0) -> T:
    """Poll until `condition` returns something true."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"waited {timeout_s:g} s for {what}")


def _environment() -> dict[str, str]:
    """No GPU, one thread, no options from outside, no network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENLLM_")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "greenllm", *arguments]


class Server:
    """A `greenllm serve` process; the meter is the modelled one whatever this machine has."""

    model = MODEL

    def __init__(self, folder: Path, *options: str) -> None:
        self.data_dir = folder
        self.log = folder / "server.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()

    def start(self) -> Server:
        """Start and wait until `/ready` says so."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        fixed = ("--port", "0", "--threads", "1", "--device", "cpu", "--meter", "modelled")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                _command("serve", *fixed, "--data-dir", str(self.data_dir), *self._options),
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        self.url = _until(self._announced, "the server's address", START_TIMEOUT_S)
        self.http = self._closing.enter_context(
            httpx.Client(base_url=self.url, timeout=120.0, trust_env=False)
        )
        self.openai = self._closing.enter_context(self.openai_client("none"))
        _until(lambda: self.http.get("/ready").status_code == 200, "/ready", START_TIMEOUT_S)
        return self

    def openai_client(self, api_key: str) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=120.0
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
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._closing.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(60)
        self._closing.close()

    def wait(self) -> int:
        """Wait for the end; whatever happened, a server never prints a traceback."""
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
            raise
        text = self.log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in text, text
        return code

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        tokens: list[int] = self.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        return tokens

    def chat(self, text: str = "Tell me about a fox.", **more: Any) -> dict[str, Any]:
        """Body of a chat request."""
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}

    def completion(self, prompt: Any = "Once upon a time", **more: Any) -> dict[str, Any]:
        """Body of a completion request; long answers unless told otherwise."""
        return {"model": MODEL, "prompt": prompt, "ignore_eos": True, **more}

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def metric(self, name: str) -> float:
        return self.metrics()[f"greenllm_{name}"]

    def wait_idle(self) -> None:
        """Wait until no sequence is running or waiting."""
        names = ("greenllm_sequences_running", "greenllm_sequences_waiting")

        def is_idle() -> bool:
            metrics = self.metrics()
            return not any(metrics[name] for name in names)

        _until(is_idle, "an idle engine")

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger's file, opened beside the running server."""
        with contextlib.closing(Ledger(self.data_dir / "ledger.sqlite", read_only=True)) as ledger:
            yield ledger

    def rows(self, since_s: float = 0.0, **wanted: Any) -> list[Receipt]:
        """Receipts whose fields have the wanted values."""
        with self.ledger() as ledger:
            found = ledger.receipts(since_s=since_s)
        return [row for row in found if all(getattr(row, k) == v for k, v in wanted.items())]

    def row(self, request_id: str) -> Receipt:
        """One request's receipt, once it is there."""
        found = _until(lambda: self.rows(request_id=request_id), f"the row of {request_id}")
        return found[0]

    def session(self) -> Session:
        """The latest session, with its joules added up and checked."""
        with self.ledger() as ledger:
            session = ledger.sessions()[-1]
            sum_j = ledger.session_sum_j(session.session_id)
        totals = session.totals
        assert totals.residual <= 1e-6, totals
        assert sum_j == pytest.approx(totals.requests_j, rel=1e-6)
        return session


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


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Polls until a condition holds."""
    return _until


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """Makes a `greenllm` command line."""
    return _command


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of such a command."""
    return _environment()


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    """The official client, connected to the shared server."""
    return server.openai


@pytest.fixture(scope="session")
def slow_server(start_server: StartServer) -> Iterator[Server]:
    """Takes one request at a time, four tokens a step, and says often that it is alive."""
    options = ("--max-num-seqs", "1", "--max-batch-tokens", "4")
    with start_server(*options, "--max-queue", "2", "--keep-alive-s", "0.05") as slow:
        yield slow


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
