"""Five hundred mixed requests at once: nobody is lost, and every joule is somewhere."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.service.conftest import Server

NUM_REQUESTS = 500
CONCURRENCY = 24
# Some that would leave are answered before they can.
WOULD_LEAVE = 0.25
ABORTED = 0.1
REFUSED = 0.04


@dataclass
class Outcomes:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    left_unknown: int = 0
    incomplete: int = 0


@dataclass(frozen=True)
class Plan:
    """One request: what is sent, and when the client leaves (None: it stays)."""

    path: str
    body: dict[str, Any]
    leave_after_s: float | None


def plan(number: int, dice: random.Random) -> Plan:
    """A random request; the same for the same number."""
    chat = dice.random() < 0.5
    body: dict[str, Any] = {
        "model": "bundled",
        "max_tokens": dice.choice([1, 4, 8, 16, 32, 48]),
        "temperature": dice.choice([0, 0.7, 1]),
        "n": dice.choice([1, 1, 1, 2, 4]),
        "stream": dice.random() < 0.5,
    }
    text = f"Story {number}: " + "the fox and the owl " * dice.choice([1, 1, 2, 5, 20])
    if chat:
        body["messages"] = [{"role": "user", "content": text}]
        body["logprobs"] = dice.random() < 0.2
    else:
        body["prompt"] = [text, text[::-1]] if dice.random() < 0.2 else text
        body["echo"] = dice.random() < 0.2
    if dice.random() < REFUSED:
        body |= dice.choice([{"temperature": 9}, {"max_tokens": 10**6}, {"model": "other"}])
    leaves = dice.random() < WOULD_LEAVE
    path = "/v1/chat/completions" if chat else "/v1/completions"
    # Over the orders of magnitude that requests take on slow and on fast machines.
    return Plan(path, body, 0.003 * 100 ** dice.random() if leaves else None)


async def run(http: httpx.AsyncClient, plan: Plan, outcomes: Outcomes) -> None:
    """Send one request and note how it went."""
    seen: list[str] = []
    try:
        async with asyncio.timeout(plan.leave_after_s):
            await _exchange(http, plan, outcomes, seen)
    except TimeoutError:
        outcomes.left += seen
        outcomes.left_unknown += not seen


async def _exchange(
    http: httpx.AsyncClient, plan: Plan, outcomes: Outcomes, seen: list[str]
) -> None:
    async with http.stream("POST", plan.path, json=plan.body) as answer:
        request_id = answer.headers["X-Request-Id"]
        seen.append(request_id)
        content = (await answer.aread()).decode()
    outcomes.statuses[answer.status_code] += 1
    if answer.status_code != 200:
        outcomes.refused.append(request_id)
        return
    outcomes.answered.append(request_id)
    whole = content.rstrip().endswith("data: [DONE]") and ": energy {" in content
    if not plan.body["stream"]:
        choices = json.loads(content)["choices"]
        whole = all(choice["finish_reason"] in ("stop", "length") for choice in choices)
    outcomes.incomplete += not whole


async def storm(url: str) -> Outcomes:
    """All requests, `CONCURRENCY` at a time."""
    outcomes = Outcomes()
    dice = random.Random(20260101)
    plans = iter([plan(number, dice) for number in range(NUM_REQUESTS)])

    async def worker(http: httpx.AsyncClient) -> None:
        for next_plan in plans:
            await run(http, next_plan, outcomes)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(
        base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False
    ) as http:
        await asyncio.gather(*(worker(http) for _ in range(CONCURRENCY)))
    return outcomes


@pytest.mark.slow
def test_five_hundred_requests_are_all_booked(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.wait_idle()
    started_s = time.time()
    outcomes = asyncio.run(storm(server.url))
    duration_s = time.time() - started_s
    server.wait_idle()
    check_rows(server, outcomes, started_s)
    figures = check_books(server)

    with capsys.disabled():
        print(f"\n{NUM_REQUESTS} requests in {duration_s:.1f} s: {dict(outcomes.statuses)},")
        print(f"{len(outcomes.left) + outcomes.left_unknown} left; {figures}")


def check_rows(server: Server, outcomes: Outcomes, since_s: float) -> None:
    """Every request has its row, with the outcome its client saw."""
    left = len(outcomes.left) + outcomes.left_unknown
    assert sum(outcomes.statuses.values()) + left == NUM_REQUESTS
    assert set(outcomes.statuses) <= {200, 400, 404}
    assert outcomes.incomplete == 0
    assert left >= NUM_REQUESTS * ABORTED
    assert outcomes.refused
    rows = {row.request_id: row for row in server.rows(since_s)}
    assert {rows[request_id].outcome for request_id in outcomes.answered} == {"completed"}
    assert {rows[request_id].outcome for request_id in outcomes.refused} == {"refused"}
    assert set(outcomes.left) <= set(rows)
    known = len(outcomes.answered) + len(outcomes.refused) + len(outcomes.left)
    assert known <= len(rows) <= NUM_REQUESTS
    by_outcome = Counter(row.outcome for row in rows.values())
    assert by_outcome["aborted"] > 0
    assert by_outcome["failed"] == 0
    assert {row.status for row in rows.values() if row.outcome != "refused"} == {"final"}


def check_books(server: Server) -> str:
    """Meter = load + idle + unattributed + requests; the rows add up to the requests."""
    metrics = server.metrics()
    assert metrics["greenllm_conservation_violations_total"] == 0
    assert metrics["greenllm_sensor_errors_total"] == 0
    assert metrics["greenllm_kv_blocks_free"] == metrics["greenllm_kv_blocks"]
    session = server.session()
    totals = session.totals
    with server.ledger() as ledger:
        rows_j = ledger.session_sum_j(session.session_id)
    booked_j = totals.load_j + totals.idle_j + totals.unattributed_j + rows_j
    assert booked_j == pytest.approx(totals.meter_j, rel=1e-6)
    assert totals.open_j == pytest.approx(0, abs=1e-6)
    off = abs(booked_j - totals.meter_j) / totals.meter_j
    return f"conservation: meter {totals.meter_j:.3f} J, rows {rows_j:.3f} J, off by {off:.1e}"
