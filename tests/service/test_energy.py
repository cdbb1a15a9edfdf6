"""Whether a request's joules mean anything: a real model, by the modelled meter."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from greenllm.energy.receipt import Receipt

if TYPE_CHECKING:
    from tests.service.conftest import Server


def post(server: Server, body: dict[str, Any]) -> Receipt:
    """Ask, and return the ledger's row."""
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return server.row(answer.json()["id"])


def test_longer_prompts_cost_more(server: Server) -> None:
    def joules(length: int, first: int) -> float:
        body = server.completion([first + i % 100 for i in range(length)], max_tokens=1)
        return post(server, body).prefill_j or 0

    short = statistics.median(joules(16, first) for first in (100, 101, 102))
    assert short < statistics.median(joules(800, first) for first in (300, 301, 302))


def test_sharing_a_batch_saves_active_joules(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The point of it all: 16 at once cost each of them a fraction of what it costs alone."""
    bodies = [server.completion(f"Story {i}: the", max_tokens=64) for i in range(16)]
    server.wait_idle()
    alone_j = statistics.median(post(server, body).active_j or 0 for body in bodies[:5])
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda body: post(server, body), bodies))
    shared_j = statistics.mean(row.active_j or 0 for row in rows)

    ratio = alone_j / shared_j
    with capsys.disabled():
        print(f"\nactive joules: alone {alone_j:.3f}, in 16 {shared_j:.3f}: {ratio:.1f} times less")
    assert {row.outcome for row in rows} == {"completed"}
    assert ratio >= 2.5


def test_active_joules_are_split_by_work_not_by_head(server: Server) -> None:
    """In one batch, the longer answer pays more."""
    bodies = [server.completion("One", max_tokens=n) for n in (16, 160)]
    with ThreadPoolExecutor(2) as pool:
        short, long = pool.map(lambda body: post(server, body), bodies)
    assert 0 < (short.active_j or 0) < (long.active_j or 0)


def test_the_books_are_balanced(server: Server) -> None:
    server.wait_idle()
    session = server.session()
    assert session.method.startswith("modelled:")
    assert not session.measured
    assert session.totals.load_j > 0
    assert session.totals.requests_j > 0
    assert server.metric("conservation_violations_total") == 0
