"""What a request's energy looks like from outside, and whether it means anything."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from greenllm.energy.receipt import Receipt
from greenllm.energy.units import J_PER_KWH, significant

if TYPE_CHECKING:
    from tests.service.conftest import Server

FIGURES = (
    "X-Energy-Joules",
    "X-Energy-Active-Joules",
    "X-Energy-Joules-Per-Token",
    "X-Energy-Kwh",
    "X-Energy-Avg-Power-Watts",
    "X-Energy-Duration-Seconds",
    "X-Energy-Uncertainty",
    "X-Carbon-Gco2e",
)
FIELDS = {
    "X-Energy-Joules": "energy_joules",
    "X-Energy-Active-Joules": "active_joules",
    "X-Energy-Joules-Per-Token": "joules_per_token",
    "X-Energy-Kwh": "energy_kwh",
    "X-Energy-Avg-Power-Watts": "avg_power_watts",
    "X-Energy-Duration-Seconds": "duration_seconds",
    "X-Energy-Uncertainty": "uncertainty",
    "X-Carbon-Gco2e": "gco2e",
}


@pytest.fixture(scope="module")
def answer(server: Server) -> httpx.Response:
    """One chat answer of 32 tokens."""
    body = server.chat(max_tokens=32, temperature=0, ignore_eos=True)
    return server.http.post("/v1/chat/completions", json=body)


def test_figures_are_plain_decimals(answer: httpx.Response) -> None:
    for name in FIGURES:
        text = answer.headers[name]
        assert set(text) <= set("0123456789."), f"{name}: {text}"
        assert Decimal(text) > 0
        digits = Decimal(text).normalize().as_tuple().digits
        assert len(digits) <= 3, f"{name}: {text}"


def test_figures_belong_together(answer: httpx.Response) -> None:
    figures = {name: float(answer.headers[name]) for name in FIGURES}
    total_j = figures["X-Energy-Joules"]

    assert figures["X-Energy-Active-Joules"] <= total_j
    assert figures["X-Energy-Joules-Per-Token"] == pytest.approx(total_j / 32, rel=0.02)
    assert figures["X-Energy-Kwh"] == pytest.approx(total_j / J_PER_KWH, rel=0.02)
    power_w = total_j / figures["X-Energy-Duration-Seconds"]
    assert figures["X-Energy-Avg-Power-Watts"] == pytest.approx(power_w, rel=0.02)
    assert 0 < figures["X-Energy-Uncertainty"] <= 1


def test_figures_are_the_ledgers_rounded(server: Server, answer: httpx.Response) -> None:
    row = server.row(answer.headers["X-Request-Id"])

    assert row.total_j is not None
    per_token = significant(row.total_j / row.completion_tokens)
    assert float(answer.headers["X-Energy-Joules-Per-Token"]) == per_token
    assert float(answer.headers["X-Energy-Joules"]) == significant(row.total_j)
    assert row.total_j == (row.active_j or 0) + (row.idle_j or 0)
    assert row.active_j == pytest.approx((row.prefill_j or 0) + (row.decode_j or 0))
    assert sum(row.domains_j.values()) == pytest.approx(row.total_j)


def test_a_machine_without_sensors_says_so(answer: httpx.Response) -> None:
    assert answer.headers["X-Energy-Method"].startswith("modelled:")
    assert answer.headers["X-Energy-Measured"] == "false"
    assert answer.headers["X-Energy-Status"] == "final"


def test_intensity_names_its_source(answer: httpx.Response) -> None:
    value, *rest = answer.headers["X-Carbon-Intensity"].split("; ")
    named = dict(part.split("=", 1) for part in rest)

    assert Decimal(value) > 0
    assert set(named) == {"zone", "source", "year"}
    assert named["zone"] == '"WORLD"'
    assert len(named["source"]) > 2
    assert named["year"].isdigit()


def test_body_headers_and_receipt_agree(server: Server, answer: httpx.Response) -> None:
    energy = answer.json()["usage"]["energy"]
    link = answer.headers["Link"]
    path, relation = link.split("; ")
    receipt = server.http.get(path.strip("<>")).json()

    assert relation == 'rel="describedby"'
    assert answer.json()["id"] == answer.headers["X-Request-Id"] == receipt["request_id"]
    for header, field in FIELDS.items():
        assert float(answer.headers[header]) == energy[field] == receipt[field]
    assert {name: receipt[name] for name in energy} == energy
    usage = answer.json()["usage"]
    assert receipt["prompt_tokens"] == usage["prompt_tokens"]
    assert receipt["completion_tokens"] == usage["completion_tokens"] == 32
    assert receipt["outcome"] == "completed"
    assert receipt["endpoint"] == "/v1/chat/completions"


def test_repeated_long_prompt_is_cached(server: Server) -> None:
    body = server.completion([7 + i % 800 for i in range(600)], max_tokens=2)
    first, second = (server.http.post("/v1/completions", json=body).json() for _ in range(2))

    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 500
    assert second["usage"]["prompt_tokens"] == 600
    joules = [reply["usage"]["energy"]["prefill_joules"] for reply in (first, second)]
    assert joules[1] < joules[0]


def test_longer_answers_cost_more(server: Server) -> None:
    def joules(max_tokens: int) -> float:
        body = server.completion(max_tokens=max_tokens, temperature=0)
        rows = [post(server, body) for _ in range(3)]
        return statistics.median(row.active_j or 0 for row in rows)

    assert joules(8) < joules(32) < joules(96)


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


def post(server: Server, body: dict[str, Any]) -> Receipt:
    """Ask, and return the ledger's row."""
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return server.row(answer.json()["id"])
