"""What a request's energy looks like from outside, on a machine whose joules are known."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.energy.meters.protocol import Reading
from greenllm.energy.units import J_PER_KWH, significant
from tests.api.machine import LOAD_STEPS, STEP_ACTIVE_J, STEP_J, STEP_S, Machine
from tests.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# Of an answer of 32 tokens by nobody else's side: 32 steps of 10 W for 10 ms, 2 W of it idle.
HEADERS = {
    "X-Energy-Joules": "3.2",
    "X-Energy-Active-Joules": "2.56",
    "X-Energy-Joules-Per-Token": "0.1",
    "X-Energy-Kwh": "0.000000889",
    "X-Energy-Avg-Power-Watts": "10",
    "X-Energy-Duration-Seconds": "0.32",
    "X-Energy-Uncertainty": "0.05",
    "X-Energy-Method": "modelled:steps",
    "X-Energy-Measured": "false",
    "X-Energy-Status": "final",
}
FIELDS = {
    "X-Energy-Joules": "energy_joules",
    "X-Energy-Active-Joules": "active_joules",
    "X-Energy-Joules-Per-Token": "joules_per_token",
    "X-Energy-Kwh": "energy_kwh",
    "X-Energy-Avg-Power-Watts": "avg_power_watts",
    "X-Energy-Duration-Seconds": "duration_seconds",
    "X-Energy-Uncertainty": "uncertainty",
    "X-Carbon-Gco2e": "gco2e",
    "X-Carbon-Operational-Gco2e": "operational_gco2e",
}


@pytest.fixture(scope="module")
def answer(server: App) -> httpx.Response:
    """One chat answer of 32 tokens."""
    server.wait_idle()
    return server.http.post(CHAT, json=server.chat(max_tokens=32, temperature=0))


def complete(server: App, max_tokens: int = 4, **more: Any) -> dict[str, Any]:
    """`usage.energy` of a text completion."""
    body = server.completion(max_tokens=max_tokens, **more)
    energy: dict[str, Any] = server.http.post(TEXT, json=body).json()["usage"]["energy"]
    return energy


def session_of(server: App) -> dict[str, float]:
    server.wait_idle()
    found: dict[str, float] = server.http.get("/v1/energy").json()["session"]
    return found


def test_headers_say_what_the_machine_drew(answer: httpx.Response) -> None:
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


def test_grams_follow_from_joules_intensity_and_hardware(answer: httpx.Response) -> None:
    value, *rest = answer.headers["X-Carbon-Intensity"].split("; ")
    named = dict(part.split("=", 1) for part in rest)
    assert set(named) == {"zone", "source", "year"}
    assert named["zone"] == '"WORLD"'
    assert len(named["source"]) > 2
    assert named["year"].isdigit()
    operational_g = 3.2 / J_PER_KWH * float(value)
    total_g = operational_g + EmbodiedModel.per_vcpu(2).grams(32 * STEP_S)
    assert float(answer.headers["X-Carbon-Operational-Gco2e"]) == significant(operational_g)
    assert float(answer.headers["X-Carbon-Gco2e"]) == significant(total_g)


def test_body_headers_receipt_and_ledger_agree(server: App, answer: httpx.Response) -> None:
    usage = answer.json()["usage"]
    energy = usage["energy"]
    path, relation = answer.headers["Link"].split("; ")
    receipt = server.http.get(path.strip("<>")).json()
    row = server.row(answer.headers["X-Request-Id"])
    assert relation == 'rel="describedby"'
    assert answer.json()["id"] == answer.headers["X-Request-Id"] == receipt["request_id"]
    for header, field in FIELDS.items():
        assert float(answer.headers[header]) == energy[field]
    assert {name: receipt[name] for name in energy} == energy
    assert receipt["prompt_tokens"] == usage["prompt_tokens"] == row.prompt_tokens
    assert receipt["completion_tokens"] == usage["completion_tokens"] == 32
    assert (receipt["outcome"], receipt["endpoint"]) == ("completed", CHAT)
    assert receipt["http_status"] == row.http_status == 200
    assert row.total_j == pytest.approx(32 * STEP_J)
    assert row.idle_j == pytest.approx(32 * (STEP_J - STEP_ACTIVE_J))
    assert row.active_j == pytest.approx((row.prefill_j or 0) + (row.decode_j or 0))
    assert sum(row.domains_j.values()) == pytest.approx(row.total_j)


def test_a_session_starts_with_its_load_and_every_joule_has_a_place(start_app: StartApp) -> None:
    server = start_app()
    complete(server, 3)
    server.machine.rest(20)
    complete(server, 5)
    server.machine.rest(7)
    found = session_of(server)
    assert found.pop("residual") < 1e-9
    assert found == {
        "meter_joules": pytest.approx((LOAD_STEPS + 3 + 20 + 5) * STEP_J),
        "load_joules": pytest.approx(LOAD_STEPS * STEP_J),
        "idle_joules": pytest.approx(20 * STEP_J),
        "training_joules": 0,
        "unattributed_joules": 0,
        "request_joules": pytest.approx(8 * STEP_J),
        "open_joules": 0,
    }
    assert server.session().totals.requests_j == pytest.approx(8 * STEP_J)


def test_together_requests_pay_for_the_steps_they_share(start_app: StartApp) -> None:
    server = start_app()
    with ThreadPoolExecutor(4) as pool, server.machine.held():
        asked = [pool.submit(complete, server, 16, prompt=f"Story {i}") for i in range(4)]
        until(lambda: server.metric("requests_in_flight") == 4, "all of them")
        server.machine.go_on()
        paid_j = [one.result()["energy_joules"] for one in asked]
    steps = server.metric("steps_total")
    assert 16 <= steps <= 17, "the first may run when the others come"
    assert sum(paid_j) == pytest.approx(steps * STEP_J, rel=0.01)
    assert session_of(server)["request_joules"] == pytest.approx(steps * STEP_J)
    assert max(paid_j) < complete(server, 16)["energy_joules"] / 2


def test_a_repeated_long_prompt_is_cached(start_app: StartApp) -> None:
    server = start_app(max_batch_tokens=128, max_num_seqs=8)
    body = server.completion([7 + i % 800 for i in range(600)], max_tokens=2)
    first, second = (server.http.post(TEXT, json=body).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= 500
    assert second["prompt_tokens"] == 600
    assert first["energy"]["energy_joules"] == pytest.approx((5 + 1) * STEP_J)
    assert second["energy"]["energy_joules"] == pytest.approx((1 + 1) * STEP_J)


class Unmetered(Machine):
    """No sensor and no model of one."""

    method = "unknown"
    uncertainty = 1.0
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = None

    def read(self) -> Reading:
        return Reading(self.clock())


FIGURES = [name for name in FIELDS if name != "X-Energy-Duration-Seconds"]


def assert_unknown(server: App, answer: httpx.Response, status: str) -> None:
    """Absent from the headers, null in the body and the receipt."""
    assert answer.status_code == 200
    assert not [name for name in FIGURES if name in answer.headers]
    assert answer.headers["X-Energy-Status"] == status
    energy = answer.json()["usage"]["energy"]
    receipt = server.http.get(f"/v1/energy/{answer.json()['id']}").json()
    for told in (energy, receipt):
        assert [told[FIELDS[name]] for name in FIGURES] == [None] * len(FIGURES)
        assert told["duration_seconds"] > 0


def test_what_nothing_meters_is_unknown_and_not_zero(start_app: StartApp) -> None:
    server = start_app(machine=Unmetered())
    answer = server.http.post(TEXT, json=server.completion(max_tokens=4))
    assert_unknown(server, answer, "unmetered")
    (sums,) = server.http.get("/v1/energy").json()["data"]
    assert (sums["requests"], sums["unmetered_requests"], sums["energy_joules"]) == (1, 1, None)


def test_a_lost_sensor_makes_receipts_provisional_until_it_is_back(start_app: StartApp) -> None:
    server = start_app()
    server.machine.is_blind = True
    first = server.http.post(TEXT, json=server.completion(max_tokens=4))
    assert_unknown(server, first, "provisional")
    server.machine.is_blind = False
    server.machine.rest(200)
    complete(server)

    def is_final() -> bool:
        receipt = server.http.get(f"/v1/energy/{first.json()['id']}").json()
        assert receipt["http_status"] == 200, "also of what is known after the answer"
        return bool(receipt["status"] == "final" and receipt["energy_joules"] > 0)

    until(is_final, "the final receipt")
    assert server.metric("sensor_errors_total") > 0
    assert server.metric("conservation_violations_total") == 0
    server.machine.is_blind = True
    guessed = server.http.post(TEXT, json=server.completion(max_tokens=4))
    assert guessed.headers["X-Energy-Status"] == "provisional"
    assert guessed.headers["X-Energy-Uncertainty"] == "1"
    assert float(guessed.headers["X-Energy-Joules"]) > 0
    server.machine.is_blind = False
