"""Everything that does not generate: models, tokens, energy sums, health, metrics, keys."""

from __future__ import annotations

import hashlib
import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.api.shapes import GOLDEN

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

KEYS = ("sk-first-6f1c0a", "sk-second-9b2e7d")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PUBLIC = {"GET /health", "GET /ready"}
MODEL_LABEL = re.compile(r'model="([^"]*)"')
ROUTES = (GOLDEN / "routes.txt").read_text().splitlines()


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    found = client.models.retrieve("bundled")
    assert listed.id == found.id == "bundled"
    assert (found.object, found.owned_by) == ("model", "greenllm")
    more = found.model_extra or {}
    assert more["max_model_len"] == 1024
    assert more["threads"] == [{"from_tokens": 1, "threads": 1}]
    assert more["speculation"]["methods"] == ["off", "auto", "prompt_lookup", "early_exit"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_tokens_make_a_round_trip(server: App) -> None:
    text = "The fox said: \u00abhello\u00bb, na\u00efve \u2603!"
    ids = server.http.post("/tokenize", json={"prompt": text}).json()
    back = server.http.post("/detokenize", json={"tokens": ids["tokens"]}).json()
    assert back["prompt"] == text
    assert ids["count"] == len(ids["tokens"]) > 1
    assert ids["max_model_len"] == 1024
    messages = server.chat("Hello", max_tokens=1)["messages"]
    tokens = server.http.post("/v1/tokenize", json={"messages": messages}).json()["count"]
    answer = server.http.post(CHAT, json=server.chat("Hello", max_tokens=1)).json()
    assert answer["usage"]["prompt_tokens"] == tokens
    info = server.http.get("/tokenizer_info").json()
    assert info["vocab_size"] >= 1024
    assert "messages" in info["chat_template"]
    assert len(server.tokenize(info["eos_token"])) == 1


@pytest.mark.parametrize(
    ("method", "path", "given", "param"),
    [
        ("POST", "/tokenize", {"json": {}}, "prompt"),
        ("POST", "/tokenize", {"json": {"prompt": "a", "messages": []}}, "prompt"),
        ("POST", "/tokenize", {"json": {"prompt": 5}}, "prompt"),
        ("POST", "/detokenize", {"json": {"tokens": [99999999]}}, "tokens"),
        ("POST", "/detokenize", {"json": {"tokens": [-1]}}, "tokens"),
        ("POST", "/detokenize", {"json": {"tokens": ["a"]}}, "tokens.0"),
        ("POST", "/detokenize", {"json": {"tokens": [1], "x": 1}}, "x"),
        ("GET", "/v1/energy", {"params": {"since": "soon"}}, "since"),
        ("GET", "/v1/energy", {"params": {"until": "soon"}}, "until"),
        ("GET", "/v1/energy", {"params": {"group_by": "colour"}}, "group_by"),
        ("GET", "/v1/energy", {"params": {"to": "1"}}, "to"),
    ],
)
def test_nonsense_is_refused(
    server: App, method: str, path: str, given: dict[str, Any], param: str
) -> None:
    answer = server.http.request(method, path, **given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "group", ["model", "adapter", "key", "team", "user", "hour", "outcome", "endpoint"]
)
def test_energy_sums_are_the_ledgers(server: App, group: str) -> None:
    server.http.post(TEXT, json=server.completion(max_tokens=3))
    server.wait_idle()
    report, rows = server.http.get("/v1/energy").json(), server.rows()
    (total,) = report["data"]
    assert report["object"] == "energy.report"
    assert total["requests"] == len(rows)
    assert total["completion_tokens"] == sum(row.completion_tokens for row in rows)
    total_j = sum(row.total_j or 0 for row in rows)
    assert total["energy_joules"] == pytest.approx(total_j, rel=0.006)
    assert report["session"]["residual"] <= 1e-6
    groups = server.http.get("/v1/energy", params={"group_by": group}).json()
    assert groups["group_by"] == group
    assert sum(row["requests"] for row in groups["data"]) == total["requests"]
    parts_j = sum(row["energy_joules"] or 0 for row in groups["data"])
    assert parts_j == pytest.approx(total["energy_joules"], rel=0.02)


def test_energy_of_a_period(server: App) -> None:
    before_s = time.time()
    server.http.post(TEXT, json=server.completion(max_tokens=1))
    since = server.http.get("/v1/energy", params={"since": before_s}).json()["data"]
    until = server.http.get("/v1/energy", params={"until": before_s, "since": before_s}).json()
    future = server.http.get("/v1/energy", params={"since": "2999-01-01T00:00:00+00:00"}).json()
    assert [row["requests"] for row in since] == [1]
    assert until["data"] == future["data"] == []


def test_unknown_receipt_is_not_found(server: App) -> None:
    answer = server.http.get("/v1/energy/chatcmpl-none")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_health_and_readiness(server: App) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json()["ready"] is True


def test_metrics_count_tokens_and_joules(server: App) -> None:
    server.wait_idle()
    before = server.metrics()
    server.http.post(TEXT, json=server.completion(max_tokens=9))
    server.wait_idle()
    after = server.metrics()

    def grown(name: str) -> float:
        return sum(v - before.get(k, 0.0) for k, v in after.items() if k.startswith(name))

    assert grown("greenllm_completion_tokens_total") == 9
    assert grown("greenllm_energy_joules_total{") == pytest.approx(0.9)
    assert grown("greenllm_request_energy_joules_count{") == 1
    assert grown("greenllm_request_duration_seconds_count{") == 1
    labels = next(name for name in after if name.startswith("greenllm_energy_joules_total{"))
    assert all(f'{label}="' in labels for label in ("domain", "phase", "model", "adapter"))
    totals = server.session().totals
    spent_j = sum(v for k, v in after.items() if k.startswith("greenllm_energy_joules_total{"))
    assert spent_j == pytest.approx(totals.requests_j, rel=1e-6)
    destination = 'greenllm_account_joules_total{destination="requests"}'
    assert after[destination] == pytest.approx(totals.requests_j, rel=1e-6)


def test_whatever_a_model_is_called_it_is_one_model(start_app: StartApp) -> None:
    """Answers, also refused ones, are summed up under its official name."""
    server = start_app(served_model_name="my-model")
    (listed,) = server.http.get("/v1/models").json()["data"]
    assert (listed["id"], listed["aliases"]) == ("my-model", ["bundled"])
    for name in ("my-model", "bundled"):
        answer = server.http.post(TEXT, json=server.completion() | {"model": name}).json()
        assert answer["model"] == name, "what was asked for"
        receipt = server.http.get(f"/v1/energy/{answer['id']}").json()
        assert (receipt["model"], receipt["asked_model"]) == ("my-model", name)
        refused = server.completion(temperature=9) | {"model": name}
        answer_id = server.http.post(TEXT, json=refused).headers["X-Request-Id"]
        assert server.row(answer_id).http_status == 400
    sums = server.http.get("/v1/energy", params={"group_by": "model"}).json()["data"]
    assert [(row["group"], row["requests"]) for row in sums] == [("my-model", 4)]
    labels = {found[1] for name in server.metrics() if (found := MODEL_LABEL.search(name))}
    assert labels == {"my-model"}


@pytest.fixture(scope="module")
def locked(start_app: StartApp) -> App:
    """An app that wants a key."""
    return start_app(api_keys=KEYS)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "given",
    [
        "Bearer sk-wrong",
        "Bearer",
        f"Bearer {KEYS[0][:-1]}",
        f"Bearer {','.join(KEYS)}",
        f"Basic {KEYS[0]}",
        KEYS[0],
        "Bearer \u00e9",
    ],
)
def test_wrong_keys_are_refused(locked: App, given: str) -> None:
    headers = {b"Authorization": given.encode("utf-8")}
    answer = locked.http.post(CHAT, json=locked.chat(), headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    rows = {row.request_id for row in locked.rows()}
    assert answer.headers["X-Request-Id"] not in rows, "strangers could fill the disk"


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_told_without_a_key(locked: App, route: str) -> None:
    method, path = route.split()
    body: dict[str, Any] = {"json": {}} if method == "POST" else {}
    refused = locked.http.request(method, path, **body)
    taken = locked.http.request(method, path, headers=bearer(KEYS[1]), **body)
    assert (refused.status_code == 401) == (route not in PUBLIC)
    assert taken.status_code not in (401, 500)


def test_official_client_with_a_key(locked: App) -> None:
    with locked.openai_client("sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with locked.openai_client(KEYS[0]) as friend:
        answer = friend.chat.completions.create(
            model="bundled", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        )
    assert locked.row(answer.id).outcome == "completed"


def complete(locked: App, key: str) -> str:
    """Id of an answer."""
    body = locked.completion(max_tokens=1)
    answer = locked.http.post(TEXT, json=body, headers=bearer(key)).json()
    return str(answer["id"])


def test_ledger_knows_keys_by_fingerprint_only(locked: App) -> None:
    digest = hashlib.sha256(KEYS[1].encode()).hexdigest()
    assert locked.row(complete(locked, KEYS[1])).key == f"key-{digest[:12]}"
    files = [path for path in locked.data_dir.iterdir() if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not any(key.encode() in content for key in KEYS), path.name


def test_receipts_and_sums_of_other_keys_stay_hidden(locked: App) -> None:
    mine = complete(locked, KEYS[0])

    def read(path: str, key: str) -> httpx.Response:
        return locked.http.get(path, headers=bearer(key))

    def count(key: str) -> int:
        return sum(row["requests"] for row in read("/v1/energy", key).json()["data"])

    assert read(f"/v1/energy/{mine}", KEYS[0]).status_code == 200
    assert read(f"/v1/energy/{mine}", KEYS[1]).status_code == 404
    before = [count(key) for key in KEYS]
    complete(locked, KEYS[0])
    assert [count(key) for key in KEYS] == [before[0] + 1, before[1]]
