"""The wire format, byte for byte but for values that change: golden files, and how one is made.

After an intended change, run `tests/api/test_wire.py` once with UPDATE_GOLDEN=1 and read the
difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx

from tests.client import Client

GOLDEN = Path(__file__).parent / "golden"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ADAPTERS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
BODIES = (CHAT, TEXT, "/tokenize", "/detokenize", *ADAPTERS)
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
        if name in ("date", "content-length", "server", "transfer-encoding"):
            continue
        text = ID.sub(r"<\1>", value)
        text = re.sub(r'source="[^"]+"', 'source="<text>"', text)
        text = re.sub(r"^modelled:[\w-]+$", "modelled:<text>", text)
        lines.append(f"{name}: {NUMBER.sub('<number>', text)}")
    return "\n".join(lines) + "\n"


def metric_names(text: str) -> str:
    """Names, types, help texts and labels; what auto has seen hangs on who used it before."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        sample = re.sub(r'="[^"]*"', "", line.rsplit(" ", 1)[0])
        if not sample.startswith("greenllm_speculation_"):
            found[line if line.startswith("#") else sample] = None
    return "\n".join(found) + "\n"


def texts_of(server: Client) -> dict[str, str]:
    """Everything there is a golden file of; every answer is forced to be `aaa`."""

    def post(path: str, **body: Any) -> httpx.Response:
        return server.http.post(path, json={**forced, **body})

    def get(path: str) -> Any:
        return server.http.get(path).json()

    forced = {"logit_bias": {server.tokenize("a")[0]: 100}, "max_tokens": 3, "temperature": 0}
    usage = {"stream_options": {"include_usage": True}}
    chat = post(CHAT, **server.chat(), logprobs=True, top_logprobs=1)
    stream = post(CHAT, **server.chat(), stream=True, **usage)
    text = post(TEXT, **server.completion("a b"), echo=True, logprobs=1)
    text_stream = post(TEXT, **server.completion("a b"), stream=True, logprobs=1)
    error = post(CHAT, **server.chat(temperature=9))
    assert chat.json()["choices"][0]["message"]["content"] == "aaa"
    ids = server.http.post("/tokenize", json={"prompt": "a b"}).json()
    back = server.http.post("/detokenize", json={"tokens": ids["tokens"]}).json()
    tokens = {"tokenize": ids, "detokenize": back, "info": get("/tokenizer_info")}
    document = get("/openapi.json")
    paths = document["paths"]
    routes = [f"{method.upper()} {path}" for path, item in paths.items() for method in item]
    return {
        "chat_headers.txt": headers(chat),
        "chat_body.json": pretty(chat.json()),
        "stream_headers.txt": headers(stream),
        "chat_stream.txt": transcript(stream.text),
        "completion_headers.txt": headers(text),
        "completion_body.json": pretty(text.json()),
        "completion_stream.txt": transcript(text_stream.text),
        "error_headers.txt": headers(error),
        "error_body.json": pretty(error.json()),
        "models.json": pretty(get("/v1/models")),
        "receipt.json": pretty(get(f"/v1/energy/{text.json()['id']}")),
        "energy_report.json": pretty(get("/v1/energy")),
        "tokens.json": pretty(tokens),
        "health.json": pretty({"health": get("/health"), "ready": get("/ready")}),
        "metrics.txt": metric_names(server.http.get("/metrics").text),
        "routes.txt": "\n".join(sorted(routes)) + "\n",
        "parameters.txt": "".join(_parameters(document, path) for path in BODIES),
    }


def body_schema(document: Any, path: str) -> Any:
    """The schema of a route's body."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return resolved(document, content["application/json"]["schema"])


def resolved(document: Any, schema: Any) -> Any:
    """A schema, or what it refers to."""
    while "$ref" in schema:
        found = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema


def _parameters(document: Any, path: str) -> str:
    names = body_schema(document, path)["properties"]
    return "".join(f"{path} {name}\n" for name in sorted(names))
