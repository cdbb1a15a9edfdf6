"""The wire format, byte for byte but for values that change: it cannot change unseen.

After an intended change, run this file once with UPDATE_GOLDEN=1 and read the difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

GOLDEN = Path(__file__).parent / "golden"
STABLE = {"object", "role", "finish_reason", "model", "type", "param", "code", "status", "owned_by"}
STABLE |= {"measured", "outcome", "endpoint", "group_by", "carbon_intensity_zone", "quantization"}
ID = re.compile(r"(chatcmpl|cmpl|req)-[0-9a-f]{28}")
NUMBER = re.compile(r"(?<![\w<-])\d+(\.\d+)?(?!\w)")


def assert_golden(name: str, text: str) -> None:
    """Compare with the golden file."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} has changed"


def shape(value: Any, key: str = "") -> Any:
    """A JSON value with its changing parts replaced; keys, order, nulls and words stay."""
    if isinstance(value, dict):
        if key == "top_logprobs" and "token" not in value:
            return {"<token>": "<number>"}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return "<integers>"
        return [shape(item, key) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return value if key in STABLE else ID.sub(r"<\1>", value) if ID.match(value) else "<text>"
    return value if key == "index" else "<number>"


def pretty(value: Any) -> str:
    return json.dumps(shape(value), indent=1) + "\n"


def transcript(text: str) -> str:
    """A stream with the JSON of each event in its shape."""
    lines: list[str] = []
    for line in text.splitlines():
        prefix, brace, rest = line.partition("{")
        found = json.loads(brace + rest) if brace else None
        lines.append(prefix + json.dumps(shape(found)) if brace else line)
    return "\n".join(lines) + "\n"


def headers(answer: httpx.Response) -> str:
    """Status and headers, sorted, numbers and ids replaced."""
    lines = [f"{answer.status_code}"]
    for name, value in sorted(answer.headers.items()):
        if name in ("date", "content-length", "server"):
            continue
        text = ID.sub(r"<\1>", value)
        text = re.sub(r'source="[^"]+"', 'source="<text>"', text)
        text = re.sub(r"^modelled:[\w-]+$", "modelled:<text>", text)
        lines.append(f"{name}: {NUMBER.sub('<number>', text)}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def forced(server: Server) -> dict[str, Any]:
    """Options that make every answer `aaa`."""
    return {"logit_bias": {str(server.tokenize("a")[0]): 100}, "max_tokens": 3, "temperature": 0}


def test_chat_answer(server: Server, forced: dict[str, Any]) -> None:
    body = server.chat(**forced, logprobs=True, top_logprobs=1)
    answer = server.http.post("/v1/chat/completions", json=body)

    assert answer.json()["choices"][0]["message"]["content"] == "aaa"
    assert_golden("chat_headers.txt", headers(answer))
    assert_golden("chat_body.json", pretty(answer.json()))


def test_chat_stream(server: Server, forced: dict[str, Any]) -> None:
    body = server.chat(**forced, stream=True, stream_options={"include_usage": True})
    answer = server.http.post("/v1/chat/completions", json=body)

    assert_golden("stream_headers.txt", headers(answer))
    assert_golden("chat_stream.txt", transcript(answer.text))


def test_completion_answer(server: Server, forced: dict[str, Any]) -> None:
    body = server.completion("a b", **forced, echo=True, logprobs=1)
    answer = server.http.post("/v1/completions", json=body)

    assert_golden("completion_headers.txt", headers(answer))
    assert_golden("completion_body.json", pretty(answer.json()))


def test_completion_stream(server: Server, forced: dict[str, Any]) -> None:
    body = server.completion("a b", **forced, stream=True, logprobs=1)
    answer = server.http.post("/v1/completions", json=body)

    assert_golden("completion_stream.txt", transcript(answer.text))


def test_errors(server: Server) -> None:
    answer = server.http.post("/v1/chat/completions", json=server.chat(temperature=9))

    assert_golden("error_headers.txt", headers(answer))
    assert_golden("error_body.json", pretty(answer.json()))


def test_models(server: Server) -> None:
    assert_golden("models.json", pretty(server.http.get("/v1/models").json()))


def test_receipt(server: Server) -> None:
    body = server.completion(max_tokens=2)
    request_id = server.http.post("/v1/completions", json=body).json()["id"]

    assert_golden("receipt.json", pretty(server.http.get(f"/v1/energy/{request_id}").json()))


def test_energy_report(server: Server) -> None:
    server.http.post("/v1/completions", json=server.completion(max_tokens=1))

    assert_golden("energy_report.json", pretty(server.http.get("/v1/energy").json()))


def test_tokens(server: Server) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "a b"}).json()
    text = server.http.post("/detokenize", json={"tokens": ids["tokens"]}).json()
    info = server.http.get("/tokenizer_info").json()

    assert_golden("tokens.json", pretty({"tokenize": ids, "detokenize": text, "info": info}))


def test_health(server: Server) -> None:
    health, ready = (server.http.get(path).json() for path in ("/health", "/ready"))

    assert_golden("health.json", pretty({"health": health, "ready": ready}))


def test_metrics(server: Server) -> None:
    """Names, types, help texts and labels; what auto has seen hangs on who used it before."""
    server.http.post("/v1/completions", json=server.completion(max_tokens=1))
    found: dict[str, None] = {}
    for line in server.http.get("/metrics").text.splitlines():
        sample = re.sub(r'="[^"]*"', "", line.rsplit(" ", 1)[0])
        if sample.startswith("greenllm_speculation_"):
            continue
        found[line if line.startswith("#") else sample] = None

    assert_golden("metrics.txt", "\n".join(found) + "\n")


def test_paths(server: Server) -> None:
    """Every documented route."""
    paths = server.http.get("/openapi.json").json()["paths"]
    routes = [f"{method.upper()} {path}" for path, item in paths.items() for method in item]

    assert_golden("routes.txt", "\n".join(sorted(routes)) + "\n")


def test_bodies(server: Server) -> None:
    """Every documented parameter."""
    paths = server.http.get("/openapi.json").json()["paths"]
    lines: list[str] = []
    adapters = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    answers = ("/v1/chat/completions", "/v1/completions")
    for path in (*answers, "/tokenize", "/detokenize", *adapters):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        lines += [f"{path} {name}" for name in sorted(content["schema"]["properties"])]

    assert_golden("parameters.txt", "\n".join(lines) + "\n")
