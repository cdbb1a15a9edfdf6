"""Signals that end it all, a kill, and starts that fail."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from safetensors.torch import save_file
from torch import zeros

import greenllm
from greenllm.energy.ledger import Ledger
from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

Until = Callable[..., Any]
Greenllm = Callable[..., subprocess.CompletedProcess[str]]
BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
ONE = ("--max-num-seqs", "1")
LONG_PROMPTS = [[5 + (i + first) % 900 for i in range(1000)] for first in range(8)]


def test_sigterm_lets_a_long_request_finish(start_server: StartServer, until: Until) -> None:
    server = start_server()
    body = server.completion(max_tokens=300)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            httpx.post, f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S
        )
        until(lambda: server.metric("sequences_running") == 1, "a running request")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not takes_connections(server.port), "a closed port")
        finished = answer.result()
    code = server.stop()

    assert finished.status_code == 200
    assert finished.json()["usage"]["completion_tokens"] == 300
    assert code == 0
    session = server.session()
    assert session.closed
    assert session.totals.open_j == pytest.approx(0, abs=1e-9)
    row = server.row(finished.json()["id"])
    assert (row.status, row.http_status) == ("final", 200)


def test_a_terminal_that_closes_ends_it_in_peace(start_server: StartServer) -> None:
    server = start_server()
    assert server.stop(signal.SIGHUP) == 0
    assert server.session().closed


def test_sigterm_ends_what_does_not_finish(start_server: StartServer, until: Until) -> None:
    """After the drain time the rest is told so, and its joules are booked all the same."""
    server = start_server("--drain-timeout-s", "0.2", "--max-batch-tokens", "1", *ONE)
    url = f"{server.url}/v1/completions"
    whole = server.completion(LONG_PROMPTS[:4])
    streamed = server.completion(LONG_PROMPTS[4:], stream=True)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.post, url, json=whole, timeout=PATIENCE_S)
        until(lambda: server.metric("sequences_running") == 1, "a running request")
        stream = pool.submit(httpx.post, url, json=streamed, timeout=PATIENCE_S)
        until(lambda: server.metric("sequences_waiting") == 7, "two requests")
        code = server.stop()

    assert code == 0
    assert answer.result().status_code == 503
    assert answer.result().json()["error"]["type"] == "server_error"
    assert float(answer.result().headers["X-Energy-Joules"]) > 0
    assert "the server shut down" in stream.result().text
    assert stream.result().text.rstrip().endswith("data: [DONE]")
    assert server.session().closed
    assert {(row.outcome, row.status) for row in server.rows()} == {("aborted", "final")}
    assert sorted(row.http_status or 0 for row in server.rows()) == [200, 503]


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_kill_loses_no_answered_request(start_server: StartServer, until: Until) -> None:
    server = start_server()
    answered: list[str] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
            while not stop.is_set():
                body = server.completion(f"Number {number}", max_tokens=4 + number)
                try:
                    answer = http.post("/v1/completions", json=body)
                except httpx.TransportError:
                    return
                answered.append(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(ask, number)
        until(lambda: len(answered) >= 40, "forty answers")
        server.kill()
        stop.set()
    killed = server.session()
    rows = {row.request_id: row for row in server.rows()}

    assert not killed.closed
    assert set(answered) <= set(rows)
    assert all(rows[request_id].status == "final" for request_id in answered)
    server.start()
    assert server.http.get(f"/v1/energy/{answered[0]}").json()["outcome"] == "completed"
    server.http.post("/v1/completions", json=server.completion(max_tokens=2))
    assert server.stop() == 0
    assert server.session().session_id != killed.session_id
    assert set(answered) <= {row.request_id for row in server.rows()}


def test_kill_in_mid_request_leaves_a_row_and_every_joule(
    start_server: StartServer, until: Until
) -> None:
    server = start_server("--max-batch-tokens", "1", *ONE)
    body = server.completion(LONG_PROMPTS, max_tokens=1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            httpx.post, f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S
        )
        until(lambda: server.session().totals.open_j > 0, "joules of an open request")
        server.kill()
    with pytest.raises(httpx.TransportError):
        answer.result()
    before = server.session()
    assert server.rows() == []

    ledger = Ledger(server.data_dir / "ledger.sqlite")
    ledger.book_lost()  # what the next server does first
    ledger.close()
    (row,), after = server.rows(), server.session()
    assert (row.outcome, row.status) == ("lost", "final")
    assert row.total_j is not None
    assert row.total_j == pytest.approx(before.totals.open_j)
    assert after.closed
    assert after.totals.meter_j == before.totals.meter_j
    assert after.totals.requests_j == pytest.approx(row.total_j)
    assert after.totals.residual < 1e-6


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, server: Server) -> dict[str, list[str]]:
    """Arguments of `greenllm serve` that cannot work."""
    folder = tmp_path_factory.mktemp("broken")
    encoder, corrupt = folder / "encoder", folder / "corrupt"
    for path in (encoder, corrupt):
        path.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BUNDLED / name, path)
    (encoder / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8,'
        ' "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 8}'
    )
    save_file({"embeddings.word_embeddings.weight": zeros(8, 8)}, encoder / "model.safetensors")
    (corrupt / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,'
        ' "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1,'
        ' "vocab_size": 8}'
    )
    (corrupt / "model.safetensors").write_bytes(b"\xff" * 64)
    (folder / "typo.toml").write_text("max_num_seq = 4\n")
    (folder / "syntax.toml").write_text("max_num_seqs = = 4\n")
    (folder / "type.toml").write_text('max_num_seqs = "many"\n')
    return {
        "missing folder": [str(folder / "nothing")],
        "no decoder": [str(encoder)],
        "corrupt weights": [str(corrupt)],
        "port taken": ["--port", str(server.port)],
        "unknown zone": ["--zone", "Atlantis"],
        "unknown value": ["--dtype", "float8"],
        "forbidden value": ["--pue", "0.5"],
        "unknown meter": ["--meter", "crystal-ball"],
        "unknown key": ["--config", str(folder / "typo.toml")],
        "not TOML": ["--config", str(folder / "syntax.toml")],
        "wrong type": ["--config", str(folder / "type.toml")],
        "no file": ["--config", str(folder / "none.toml")],
        "too many guesses": ["--speculative-tokens", "17"],
        "exit beyond": ["--exit-layer", "12"],
        "no draft model": ["--speculative", "draft_model"],
        "several devices": ["--tensor-parallel", "2"],
        "missing draft": ["--draft-model", str(folder / "nothing")],
    }


CULPRITS = {
    "missing folder": "nothing",
    "no decoder": "BertModel",
    "corrupt weights": "corrupt: model.safetensors: its header has 18446744073709551615 bytes",
    "port taken": "--port",
    "unknown zone": "Atlantis",
    "unknown value": "--dtype",
    "forbidden value": "--pue",
    "unknown meter": "crystal-ball",
    "unknown key": "max_num_seq",
    "not TOML": "syntax.toml",
    "wrong type": "max_num_seqs",
    "no file": "none.toml",
    "too many guesses": "--speculative-tokens",
    "exit beyond": "--exit-layer must be in [1, 11]",
    "no draft model": "--draft-model",
    "several devices": "--tensor-parallel needs --engine vllm",
    "missing draft": "--draft-model",
}


@pytest.mark.parametrize("name", CULPRITS)
def test_failed_starts_say_why_in_one_line(
    broken: dict[str, list[str]], greenllm: Greenllm, name: str, tmp_path: Path
) -> None:
    fixed = ("--port", "0", "--threads", "1", "--data-dir", str(tmp_path))
    done = greenllm("serve", *fixed, *broken[name])
    text = done.stderr
    lines = [line for line in text.splitlines() if line.strip()]

    assert done.returncode == 2, text
    assert "Traceback" not in text
    assert len([line for line in lines if line.startswith("greenllm:")]) == 1
    assert lines[-1].startswith("greenllm: "), text
    assert CULPRITS[name] in lines[-1]


def test_unknown_flags_are_errors(greenllm: Greenllm, tmp_path: Path) -> None:
    done = greenllm("serve", "--frobnicate", "--data-dir", str(tmp_path))

    assert done.returncode == 2
    assert "--frobnicate" in done.stderr
    assert "Traceback" not in done.stderr
