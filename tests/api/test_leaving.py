"""Clients that leave, queues that fill, servers that stop and engines that fail."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from greenllm.energy.ledger import Ledger
from greenllm.energy.ledger_writer import LedgerState
from greenllm.engine.native import NativeEngine
from greenllm.text import TextStream
from tests.api.machine import STEP_ACTIVE_J, STEP_J, SlowTokenizer
from tests.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from greenllm.core import SamplingParams
    from greenllm.energy.receipt import Receipt
    from greenllm.tokenizer import Tokenizer
    from tests.api.conftest import App, StartApp

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {"max_tokens": 900, "temperature": 0}
LONG_PROMPT = [5 + i % 900 for i in range(1000)]


@pytest.fixture
def server(start_app: StartApp) -> App:
    return start_app()


@pytest.fixture
def narrow(start_app: StartApp) -> App:
    """One request at a time, four tokens a step, two in flight."""
    return start_app(max_num_seqs=1, max_batch_tokens=4, max_queue=2)


def only_row(server: App, **wanted: Any) -> Receipt:
    (row,) = until(lambda: server.rows(**wanted), "the row")
    return row


@contextlib.contextmanager
def streams(server: App, *bodies: dict[str, Any]) -> Iterator[list[httpx.Response]]:
    """Streams that have begun."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(server.http.stream("POST", TEXT, json={**body, "stream": True}))
            for body in bodies
        ]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_during_decoding_stops_it(server: App, stream: bool) -> None:
    with server.machine.held(after_steps=5):
        client = server.begin(TEXT, server.completion(stream=stream, **LONG))
        until(lambda: server.machine.waits, "the sixth step")
        client.leave()
    server.wait_idle()
    row = only_row(server)
    assert (row.outcome, row.status) == ("aborted", "final")
    assert row.http_status == (200 if stream else None)
    assert row.completion_tokens == 6, "the step that ran then is the last"
    assert row.total_j == pytest.approx(6 * STEP_J)
    assert server.metric("kv_blocks_free") == server.metric("kv_blocks")
    server.http.post(TEXT, json=server.completion(max_tokens=2))
    assert server.metric("completion_tokens_total") == 6 + 2


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_during_prefill_stops_it(narrow: App, stream: bool) -> None:
    with narrow.machine.held(after_steps=3):
        client = narrow.begin(TEXT, narrow.completion(LONG_PROMPT, stream=stream, max_tokens=4))
        until(lambda: narrow.machine.waits, "the fourth step")
        client.leave()
    narrow.wait_idle()
    row = only_row(narrow)
    assert (row.outcome, row.completion_tokens) == ("aborted", 0)
    assert row.prefill_j == pytest.approx(4 * STEP_ACTIVE_J)
    assert row.decode_j == 0
    assert narrow.metric("steps_total") == 4


def test_leaving_while_waiting_in_the_queue(narrow: App) -> None:
    """A request that never ran is aborted, costs nothing active and holds up nobody."""
    with narrow.machine.held(after_steps=3), streams(narrow, narrow.completion("a", **LONG)):
        narrow.begin(TEXT, narrow.completion("b", **LONG)).leave()
        narrow.machine.go_on()
        row = only_row(narrow, completion_tokens=0)
        assert (row.outcome, row.active_j) == ("aborted", 0)
    narrow.wait_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_answer_has_begun(
    start_app: StartApp, slowly: SlowTokenizer, stream: bool
) -> None:
    """While a long body is worked on, beside the event loop: nothing is computed for nobody."""
    server = start_app(tokenizer=slowly)
    body = server.completion("slowly", stream=stream, **LONG)
    with server.machine.held():
        client = server.begin(TEXT, body, blanks=100_000)
        assert slowly.reached.wait(PATIENCE_S)
        client.close()
        assert server.http.get("/health").status_code == 200
        slowly.may_go_on.set()
        client.leave()
    server.wait_idle()
    row = only_row(server)
    assert row.outcome == "aborted"
    assert row.completion_tokens <= 1


def test_a_body_that_breaks_off_is_no_request(server: App) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"model": "bun'
        raise ConnectionError("the cable")

    with pytest.raises(ConnectionError):
        server.http.post(TEXT, content=parts(), headers={"Content-Type": "application/json"})
    answer = server.http.post(TEXT, json=server.completion(max_tokens=1)).json()
    assert only_row(server).request_id == answer["id"]


@pytest.mark.parametrize("path", [TEXT, "/v1/files"])
def test_a_body_that_does_not_come_is_not_waited_for(start_app: StartApp, path: str) -> None:
    server, is_over = start_app(client_timeout_s=0.2), threading.Event()

    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
        is_over.wait(PATIENCE_S)

    kind = "application/json" if path == TEXT else "multipart/form-data; boundary=x"
    headers = {"Content-Type": kind, "Content-Length": "999"}
    answer = server.http.post(path, content=parts(), headers=headers)
    is_over.set()
    assert (answer.status_code, answer.headers["Connection"]) == (408, "close")
    assert answer.json()["error"]["code"] == "body_timeout"
    if path == TEXT:
        assert server.row(answer.headers["X-Request-Id"]).http_status == 408


def test_full_queue_is_told_when_to_return(narrow: App) -> None:
    body = narrow.completion("a", max_tokens=5)
    with narrow.machine.held(), streams(narrow, body, body):
        refused = narrow.http.post(TEXT, json=body)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        narrow.machine.go_on()
    narrow.wait_idle()
    row = narrow.row(refused.headers["X-Request-Id"])
    assert (row.outcome, row.http_status) == ("refused", 429)
    assert narrow.http.post(TEXT, json=body).status_code == 200


def test_a_server_that_stops_finishes_what_it_has_and_takes_nothing_new(server: App) -> None:
    body = server.completion(max_tokens=5)
    with server.machine.held(), streams(server, body) as (running,):
        server.stop_taking()
        refused = server.http.post(TEXT, json=body)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        ready = server.http.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert server.http.get("/health").status_code == 200
        server.machine.go_on()
        assert '"finish_reason":"length"' in running.read().decode()
    assert server.row(refused.headers["X-Request-Id"]).http_status == 503


def test_what_does_not_finish_in_time_is_told_so(server: App) -> None:
    """Its joules are booked all the same."""
    with server.machine.held(after_steps=3), streams(server, server.completion(**LONG)) as (one,):
        whole = server.begin(TEXT, server.completion(**LONG))
        until(lambda: server.metric("requests_in_flight") == 2, "both")
        server.stop_taking()
        server.end_all()
        server.machine.go_on()
        lines = one.read().decode().splitlines()
        answer = whole.response()
        answer.read()
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert "X-Energy-Joules" in answer.headers
    assert any("the server shut down" in line for line in lines)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    rows = server.rows()
    assert {(row.outcome, row.status) for row in rows} == {("aborted", "final")}
    assert sorted(row.http_status or 0 for row in rows) == [200, 503]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_step_that_fails_ends_its_requests_alone(server: App, path: str) -> None:
    body = server.chat(max_tokens=4) if path == CHAT else server.completion(max_tokens=4)
    server.machine.fault = RuntimeError("the kernel")
    answer = server.http.post(path, json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("server_error", None)
    assert error["message"] == "generation failed: RuntimeError: the kernel"
    assert float(answer.headers["X-Energy-Joules"]) == pytest.approx(STEP_J)
    row = server.row(answer.headers["X-Request-Id"])
    assert (row.outcome, row.http_status) == ("failed", 500)
    server.machine.fault = RuntimeError("the kernel")
    lines = server.http.post(path, json={**body, "stream": True}).text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert told[-1]["error"]["message"] == error["message"]
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.http.post(path, json=body).status_code == 200
    assert server.metric("kv_blocks_free") == server.metric("kv_blocks")


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_is_told_to_everybody(
    server: App, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    body = server.completion(max_tokens=4)
    server.machine.fault = SystemExit("the device is gone")
    answer = server.http.post(TEXT, json={**body, "stream": stream})
    assert answer.status_code == (200 if stream else 500)
    assert "the engine stopped" in answer.text
    assert "the engine stopped" in caplog.text
    health = server.http.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "failed"})
    assert server.http.get("/ready").status_code == 503
    assert server.http.post(TEXT, json=body).status_code == 503
    row = server.row(answer.headers["X-Request-Id"])
    assert (row.outcome, row.completion_tokens) == ("failed", 0)


def test_a_server_that_is_short_of_memory_refuses_what_comes(start_app: StartApp) -> None:
    server = start_app(min_free_memory_mb=1e12)

    def reasons() -> list[str]:
        found: list[str] = server.http.get("/ready").json()["reasons"]
        return found

    assert until(reasons, "its first look") == ["the server is short of memory"]
    answer = server.http.post(TEXT, json=server.completion())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
    assert int(answer.headers["Retry-After"]) > 0
    assert server.http.get("/health").status_code == 200


def test_requests_that_wait_for_what_they_need_keep_nobody_else_waiting(
    server: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    monkeypatch.setattr(NativeEngine, "prepare", lambda *given: may_go_on.wait(PATIENCE_S))
    body = server.completion(max_tokens=2, speculative={"method": "prompt_lookup"})
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(server.http.post, TEXT, json=body) for _ in range(40)]
        try:
            texts = {"prompt": "Once upon a time"}
            assert server.http.post("/tokenize", json=texts).status_code == 200
            assert server.http.post(TEXT, json=server.completion()).status_code == 200
        finally:
            may_go_on.set()
        assert {job.result(PATIENCE_S).status_code for job in waiting} == {200}


def test_a_ledger_that_cannot_be_written_is_a_reason_not_to_be_ready(
    server: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "state", LedgerState(is_writable=False))
    answer = server.http.get("/ready")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["reasons"] == ["the ledger cannot be written"]


class Choking(SlowTokenizer):
    """A bug in the text of answers with certain stop strings, at their third token or at once."""

    def stream(self, params: SamplingParams) -> TextStream:
        steps = iter("ab")
        if "refuse" in params.stop:
            raise StopIteration
        if "choke" in params.stop:
            return TextStream(lambda token_id: next(steps), lambda ids: "", stop=params.stop)
        found: TextStream = self._real.stream(params)
        return found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["choke", "refuse"])
def test_what_fails_for_one_of_many_is_told_to_it_alone(
    start_app: StartApp, tokenizer: Tokenizer, fault: str, stream: bool
) -> None:
    server = start_app(tokenizer=Choking(tokenizer))
    good = [server.completion(f"number {n}", max_tokens=8) for n in range(8)]
    bad = server.completion("bad", max_tokens=8, stop=[fault], n=2, stream=stream)
    with server.machine.held(), ThreadPoolExecutor(9) as pool:
        jobs = [pool.submit(server.http.post, TEXT, json=body) for body in (*good, bad)]
        until(lambda: server.machine.waits, "a step")
        until(lambda: server.metric("requests_in_flight") == 9, "all of them")
        server.machine.go_on()
        *answers, failed = (job.result(PATIENCE_S) for job in jobs)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {8}
    assert failed.status_code == (200 if stream else 500)
    assert "generation failed: StopIteration" in failed.text
    server.wait_idle()
    outcomes = [row.outcome for row in server.rows()]
    assert sorted(outcomes) == ["completed"] * 8 + ["failed"]
    assert server.metric("kv_blocks_free") == server.metric("kv_blocks")


class Broken(SlowTokenizer):
    """A bug, where answers are put together."""

    def decode(self, *_: Any, **__: Any) -> str:
        raise ZeroDivisionError


def test_a_bug_is_an_error_object_and_a_failure_in_the_ledger(
    start_app: StartApp, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_app(tokenizer=Broken(tokenizer))
    bodies = {"/detokenize": {"tokens": [5]}, TEXT: server.completion(max_tokens=2, echo=True)}
    for path, body in bodies.items():
        answer = server.http.post(path, json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "internal error: ZeroDivisionError"
    assert "ZeroDivisionError" in caplog.text
    row = until(lambda: server.rows(http_status=500), "the row of the second")[0]
    assert row.completion_tokens == 2
