"""`greenllm bench serve` against a real server, and against ones that misbehave."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.load.config import BenchConfig
from greenllm.config import ConfigError

CHUNK = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
Bench = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bench(greenllm: Bench) -> Bench:
    """Runs the command."""
    return partial(greenllm, "bench", "serve")


def test_a_closed_loop_reports_rates_joules_and_what_the_server_took(
    bench: Bench, server: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    options = ("--concurrency", "1,4", "--requests", "6", "--max-tokens", "8", "--json", str(out))
    run = bench(server.url, *options)
    assert run.returncode == 0, run.stderr
    assert "4 in flight" in run.stdout
    loads = json.loads(out.read_text(encoding="utf-8"))["loads"]
    assert [load["name"] for load in loads] == ["1 in flight", "4 in flight"]
    for load in loads:
        summary = load["summary"]
        assert (summary["ok"], summary["failed"]) == (6, 0)
        assert (summary["completion_tokens"], summary["prompt_tokens"]) == (48, 192)
        assert 0 < summary["ttft_s"]["p50"] <= summary["end_to_end_s"]["p50"]
        assert summary["energy"]["joules"] > 0
        assert summary["energy"]["method"].startswith("modelled:")
        assert load["footprint"]["pid"] == server.process.pid
        assert load["footprint"]["peak_bytes"] > 50e6


def test_the_same_joules_as_the_ledger(bench: Bench, server: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    before = {row.request_id for row in server.rows()}
    options = ("--concurrency", "2", "--requests", "4", "--warm-up", "0", "--max-tokens", "8")
    assert bench(server.url, *options, "--json", str(out)).returncode == 0
    rows = [row for row in server.rows() if row.request_id not in before]
    (load,) = json.loads(out.read_text(encoding="utf-8"))["loads"]
    assert len(rows) == 4
    ledger_j = sum(row.total_j for row in rows)
    assert load["summary"]["energy"]["joules"] == pytest.approx(ledger_j, rel=0.01)


def test_a_trace_is_replayed(bench: Bench, server: Any, tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.json"
    rows = [f"2023-11-16 18:15:4{i}.0000000,{100 * (i + 1)},{40 * (i + 1)}" for i in range(4)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    options = ("--trace", str(trace), "--max-context", "140", "--rate-scale", "10")
    run = bench(server.url, *options, "--json", str(out))
    assert run.returncode == 0, run.stderr
    (load,) = json.loads(out.read_text(encoding="utf-8"))["loads"]
    assert load["summary"]["prompt_tokens"] == 25 + 50 + 75 + 100
    assert load["summary"]["completion_tokens"] == 10 + 20 + 30 + 40


def test_chat_counts_by_the_servers_usage(bench: Bench, server: Any) -> None:
    options = ("--chat", "--concurrency", "1", "--requests", "2", "--max-tokens", "4")
    assert bench(server.url, *options).returncode == 0


def test_a_refusal_is_shown_with_its_body(bench: Bench, server: Any) -> None:
    wrong = ("--vocabulary", "5000000", "--concurrency", "1", "--requests", "2")
    run = bench(server.url, *wrong, "--warm-up", "0")
    assert run.returncode == 1
    assert "2 failed: HTTP 400" in run.stdout
    assert "token ids must be in" in run.stdout
    run = bench(server.url, *wrong)
    assert run.returncode == 2
    assert "no request of the warm-up succeeded: HTTP 400" in run.stderr


def test_no_server_is_one_line(bench: Bench) -> None:
    with fake(b"") as url:
        pass
    run = bench(url)
    assert run.returncode == 2
    assert run.stderr == f"greenllm: {url} cannot be reached: Connection refused\n"


def test_a_server_with_keys_gets_a_hint(bench: Bench, start_server: Any) -> None:
    with start_server("--api-keys", "secret") as keyed:
        run = bench(keyed.url, "--requests", "1")
        assert run.returncode == 2
        assert "HTTP 401" in run.stderr
        assert "(give the key with --api-key)" in run.stderr
        options = ("--concurrency", "1", "--requests", "1", "--warm-up", "0")
        assert bench(keyed.url, *options, "--api-key", "secret").returncode == 0


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("localhost:8000", "did you mean http://localhost:8000"),
        ("127.0.0.1:8000/v1", "did you mean http://127.0.0.1:8000/v1"),
        ("localhost", "did you mean http://localhost"),
        ("nowhere", "it begins with http:// or https://"),
        ("ftp://localhost:8000", "it begins with http:// or https://"),
        ("localhost:port", "it begins with http:// or https://"),
    ],
)
def test_what_is_no_url_gets_a_hint(url: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"^not a URL of a server: {url}; {hint}$"):
        BenchConfig(url=url)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CHUNK, "cut short: the stream ended without [DONE]"),
        (CHUNK + b"data: [DONE]\n\n", "cut short: no finish_reason"),
        (
            CHUNK.replace(b"null", b'"length"')
            + b'data: {"choices":[],"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n',
            "cut short: 1 of 64 tokens",
        ),
        (b'data: {"error":{"message":"out of memory"}}\n\n', "out of memory"),
        (None, "cut short: "),
    ],
)
def test_a_stream_cut_short_is_a_failure_and_not_fast(
    bench: Bench, body: bytes | None, reason: str
) -> None:
    with fake(body) as url:
        run = bench(url, "--concurrency", "1", "--requests", "2", "--warm-up", "0")
    assert run.returncode == 1, run.stderr
    assert reason in run.stdout
    assert "2 failed" in run.stdout


def test_a_server_that_never_ends_is_given_up(bench: Bench) -> None:
    with fake(b": wait\n\n", hold_s=30.0) as url:
        options = ("--concurrency", "1", "--requests", "1", "--warm-up", "0", "--timeout-s", "1")
        run = bench(url, *options)
    assert run.returncode == 1
    assert "no whole answer within 1 s" in run.stdout


@pytest.mark.parametrize(
    "options",
    [("--concurrency", "0"), ("--requests", "0"), ("nowhere",), ("--trace", "no-such-file.csv")],
)
def test_wrong_options_are_one_line(bench: Bench, options: tuple[str, ...]) -> None:
    run = bench(*options)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stderr.startswith("greenllm: ")


@contextmanager
def fake(body: bytes | None, hold_s: float = 0.0) -> Iterator[str]:
    """A server whose streams are always `body`; None breaks the connection in the middle."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self._send("application/json", b'{"data":[{"id":"fake"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if body is not None:
                self._send("text/event-stream", body)
                released.wait(hold_s)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(CHUNK)

        def _send(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            released.set()
            http.shutdown()
            thread.join()
