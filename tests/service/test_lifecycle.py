"""Clients that leave, queues that fill, signals that end it all, and starts that fail."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from safetensors.torch import save_file
from torch import zeros

import greenllm
from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

Until = Callable[..., Any]
Greenllm = Callable[..., subprocess.CompletedProcess[str]]
LONG = {"max_tokens": 900, "temperature": 0}
BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
ONE = ("--max-num-seqs", "1")
LONG_PROMPTS = [[5 + (i + first) % 900 for i in range(1000)] for first in range(8)]


def leave(server: Server, body: dict[str, Any], when: Callable[[], object], *, read: bool) -> None:
    """Send a request, read the first part of the answer if asked to, and hang up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("POST", "/v1/completions", json.dumps(body))
    if read:
        answer = connection.getresponse()
        assert answer.readline()
        when()
        answer.close()
    else:
        when()
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_during_decoding_stops_it(server: Server, until: Until, stream: bool) -> None:
    server.wait_idle()
    since_s, before = time.time(), server.metric("steps_total")

    def is_decoding() -> bool:
        return server.metric("steps_total") > before + 3

    body = server.completion(f"Once {stream}", stream=stream, **LONG)
    leave(server, body, lambda: until(is_decoding, "decoding"), read=stream)
    (row,) = until(lambda: server.rows(since_s=since_s), "the row")
    server.wait_idle()
    generated = server.metric("completion_tokens_total")

    assert row.outcome == "aborted"
    assert row.http_status == (200 if stream else None)
    assert 0 < row.completion_tokens < 900
    assert (row.decode_j or 0) > 0
    assert row.status == "final"
    assert server.metric("kv_blocks_free") == server.metric("kv_blocks")
    server.http.post("/v1/completions", json=server.completion(max_tokens=2))
    server.wait_idle()
    assert server.metric("completion_tokens_total") == generated + 2


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_during_prefill_stops_it(slow_server: Server, until: Until, stream: bool) -> None:
    slow_server.wait_idle()
    since_s, before = time.time(), slow_server.metric("steps_total")

    def is_running() -> bool:
        return slow_server.metric("steps_total") > before

    body = slow_server.completion(LONG_PROMPTS[4 * stream :][:4], stream=stream, max_tokens=4)
    leave(slow_server, body, lambda: until(is_running, "prefill"), read=stream)
    (row,) = until(lambda: slow_server.rows(since_s=since_s), "the row")
    slow_server.wait_idle()

    assert row.outcome == "aborted"
    assert row.completion_tokens == 0
    assert (row.prefill_j or 0) > 0
    assert row.decode_j == 0
    assert slow_server.metric("steps_total") < before + 900


def test_leaving_while_waiting_in_the_queue(slow_server: Server, until: Until) -> None:
    """A request that never ran is aborted, costs nothing active and holds up nobody."""
    slow_server.wait_idle()
    body = slow_server.completion("a", stream=True, **LONG)
    with slow_server.http.stream("POST", "/v1/completions", json=body) as holding:
        events = holding.iter_lines()
        assert any(line.startswith("data: ") for line in events)
        since_s = time.time()

        def is_waiting() -> bool:
            return slow_server.metric("requests_waiting") == 1

        other = slow_server.completion("b", **LONG)
        leave(slow_server, other, lambda: until(is_waiting, "the queue"), read=False)
        (row,) = until(lambda: slow_server.rows(since_s=since_s), "the row")
    slow_server.wait_idle()

    assert row.outcome == "aborted"
    assert row.completion_tokens == 0
    assert row.active_j == 0


def test_full_queue_is_told_when_to_return(slow_server: Server, until: Until) -> None:
    body = slow_server.completion("a", stream=True, **LONG)
    url = "/v1/completions"

    def third() -> httpx.Response | None:
        """The answer to a third request, once earlier ones are settled and two are accepted."""
        with (
            slow_server.http.stream("POST", url, json=body) as first,
            slow_server.http.stream("POST", url, json=body) as second,
        ):
            accepted = first.status_code == second.status_code == 200
            return slow_server.http.post(url, json=body) if accepted else None

    refused = until(third, "two accepted requests")
    slow_server.wait_idle()

    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "queue_full"
    assert slow_server.row(refused.headers["X-Request-Id"]).http_status == 429
    short = slow_server.completion("a", max_tokens=1)
    again = until(lambda: slow_server.http.post(url, json=short).is_success, "a free place")
    assert again


def test_sigterm_lets_a_long_request_finish(start_server: StartServer, until: Until) -> None:
    server = start_server()
    body = server.completion(max_tokens=300)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            httpx.post, f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S
        )
        until(lambda: server.metric("requests_running") == 1, "a running request")
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


def test_sigterm_ends_what_does_not_finish(start_server: StartServer, until: Until) -> None:
    """After the drain time the rest is told so, and its joules are booked all the same."""
    server = start_server("--drain-timeout-s", "0.2", "--max-batch-tokens", "1", *ONE)
    url = f"{server.url}/v1/completions"
    whole = server.completion(LONG_PROMPTS[:4])
    streamed = server.completion(LONG_PROMPTS[4:], stream=True)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.post, url, json=whole, timeout=PATIENCE_S)
        until(lambda: server.metric("requests_running") == 1, "a running request")
        stream = pool.submit(httpx.post, url, json=streamed, timeout=PATIENCE_S)
        until(lambda: server.metric("requests_waiting") == 7, "two requests")
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
    "corrupt weights": "corrupt: model.safetensors: Error while deserializing",
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
