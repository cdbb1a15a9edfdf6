"""The golden files: answers, streams, errors, receipts, metrics, routes and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.shapes import assert_golden, headers, metric_names, pretty, transcript

if TYPE_CHECKING:
    from tests.api.conftest import App


@pytest.fixture(scope="module")
def forced(server: App) -> dict[str, Any]:
    """Options that make every answer `aaa`."""
    return {"logit_bias": {str(server.tokenize("a")[0]): 100}, "max_tokens": 3, "temperature": 0}


def test_chat_answer(server: App, forced: dict[str, Any]) -> None:
    body = server.chat(**forced, logprobs=True, top_logprobs=1)
    answer = server.http.post("/v1/chat/completions", json=body)

    assert answer.json()["choices"][0]["message"]["content"] == "aaa"
    assert_golden("chat_headers.txt", headers(answer))
    assert_golden("chat_body.json", pretty(answer.json()))


def test_chat_stream(server: App, forced: dict[str, Any]) -> None:
    body = server.chat(**forced, stream=True, stream_options={"include_usage": True})
    answer = server.http.post("/v1/chat/completions", json=body)

    assert_golden("stream_headers.txt", headers(answer))
    assert_golden("chat_stream.txt", transcript(answer.text))


def test_completion_answer(server: App, forced: dict[str, Any]) -> None:
    body = server.completion("a b", **forced, echo=True, logprobs=1)
    answer = server.http.post("/v1/completions", json=body)

    assert_golden("completion_headers.txt", headers(answer))
    assert_golden("completion_body.json", pretty(answer.json()))


def test_completion_stream(server: App, forced: dict[str, Any]) -> None:
    body = server.completion("a b", **forced, stream=True, logprobs=1)
    answer = server.http.post("/v1/completions", json=body)

    assert_golden("completion_stream.txt", transcript(answer.text))


def test_errors(server: App) -> None:
    answer = server.http.post("/v1/chat/completions", json=server.chat(temperature=9))

    assert_golden("error_headers.txt", headers(answer))
    assert_golden("error_body.json", pretty(answer.json()))


def test_models(server: App) -> None:
    assert_golden("models.json", pretty(server.http.get("/v1/models").json()))


def test_receipt(server: App) -> None:
    body = server.completion(max_tokens=2)
    request_id = server.http.post("/v1/completions", json=body).json()["id"]

    assert_golden("receipt.json", pretty(server.http.get(f"/v1/energy/{request_id}").json()))


def test_energy_report(server: App) -> None:
    server.http.post("/v1/completions", json=server.completion(max_tokens=1))

    assert_golden("energy_report.json", pretty(server.http.get("/v1/energy").json()))


def test_tokens(server: App) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "a b"}).json()
    text = server.http.post("/detokenize", json={"tokens": ids["tokens"]}).json()
    info = server.http.get("/tokenizer_info").json()

    assert_golden("tokens.json", pretty({"tokenize": ids, "detokenize": text, "info": info}))


def test_health(server: App) -> None:
    health, ready = (server.http.get(path).json() for path in ("/health", "/ready"))

    assert_golden("health.json", pretty({"health": health, "ready": ready}))


def test_metrics(server: App) -> None:
    server.http.post("/v1/completions", json=server.completion(max_tokens=1))
    assert_golden("metrics.txt", metric_names(server.http.get("/metrics").text))


def test_paths(server: App) -> None:
    """Every documented route."""
    paths = server.http.get("/openapi.json").json()["paths"]
    routes = [f"{method.upper()} {path}" for path, item in paths.items() for method in item]

    assert_golden("routes.txt", "\n".join(sorted(routes)) + "\n")


def test_bodies(server: App) -> None:
    """Every documented parameter."""
    paths = server.http.get("/openapi.json").json()["paths"]
    lines: list[str] = []
    adapters = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    answers = ("/v1/chat/completions", "/v1/completions")
    for path in (*answers, "/tokenize", "/detokenize", *adapters):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        lines += [f"{path} {name}" for name in sorted(content["schema"]["properties"])]

    assert_golden("parameters.txt", "\n".join(lines) + "\n")
