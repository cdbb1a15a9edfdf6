"""What cannot be served is refused by name, leaves a row, and does no harm."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
TEXT_PART = {"type": "text", "text": "What is this?"}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
TOO_LONG = [9] * 2000
MISSING = object()

SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"model": MISSING}, "model"),
    ({"model": 5}, "model"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": -7}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"seed": "x"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"logit_bias": {"abc": 1}}, "logit_bias"),
    ({"logit_bias": {"1.5": 1}}, "logit_bias"),
    ({"logit_bias": {"1_0": 1}}, "logit_bias"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"continuous": True}}, "stream_options"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"speculative": "prompt_lookup"}, "speculative"),
    ({"speculative": {}}, "speculative.method"),
    ({"speculative": {"num_tokens": 4}}, "speculative.method"),
    ({"speculative": {"method": "magic"}}, "speculative.method"),
    ({"speculative": {"method": None}}, "speculative.method"),
    ({"speculative": {"method": "draft_model"}}, "speculative.method"),
    ({"speculative": {"method": "prompt_lookup", "num_tokens": 0}}, "speculative.num_tokens"),
    ({"speculative": {"method": "prompt_lookup", "num_tokens": 17}}, "speculative.num_tokens"),
    ({"speculative": {"method": "prompt_lookup", "num_tokens": "4"}}, "speculative.num_tokens"),
    ({"speculative": {"method": "auto", "num_tokens": 4}}, "speculative.num_tokens"),
    ({"speculative": {"method": "off", "num_tokens": 4}}, "speculative.num_tokens"),
    ({"speculative": {"method": "off", "exit_layer": 2}}, "speculative.exit_layer"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"UseBeamSearch": True}, "UseBeamSearch"),
    ({"use-beam-search": True}, "use-beam-search"),
]
ONLY_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": MISSING}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "alien", "content": "Hi"}]}, "messages.0.role"),
    ({"messages": [USER, {"role": "user"}]}, "messages.1.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages.0.tool_calls"),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [TOOL]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"functions": [TOOL]}, "functions"),
    ({"response_format": SCHEMA}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"store": True}, "store"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"best_of": 1}, "best_of"),
]
ONLY_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": MISSING}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [99999]}, "prompt"),
    ({"prompt": [5, -1]}, "prompt"),
    ({"prompt": [[5], [99999]]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": TOO_LONG}, "prompt"),
    ({"prompt": [[5]] * 4097}, "prompt"),
    ({"prompt": ["a"] * 50, "n": 128}, "prompt"),
    ({"prompt": "word " * 2000}, "prompt"),
    ({"prompt": [9] * 1000, "max_tokens": 100}, "max_tokens"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "the end"}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": "yes"}, "echo"),
    ({"messages": [USER]}, "messages"),
]
CASES = [
    *((CHAT, change, name) for change, name in [*SAMPLING, *ONLY_CHAT]),
    *((TEXT, change, name) for change, name in [*SAMPLING, *ONLY_TEXT]),
]
BODIES = {
    "empty": b"",
    "cut": b'{"model": "bundled", "messages": [',
    "null": b"null",
    "list": b"[]",
    "text": b'"hello"',
    "two": b"{}{}",
    "bytes": b'{"model": "\xff\xfe"}',
    "latin-1": '{"model": "caf\u00e9"}'.encode("latin-1"),
    "surrogate": b'{"model": "bundled", "prompt": "\\ud800", "messages": []}',
    "deep": b"[" * 100_000,
    "nan": b'{"model": NaN}',
}


def checked(server: Server, answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a refusal that also left its row."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    row = server.row(answer.headers["X-Request-Id"])
    assert (row.outcome, row.http_status) == ("refused", status)
    assert row.total_j is None
    assert row.endpoint == answer.request.url.path
    return error


def send(server: Server, path: str, change: dict[str, Any]) -> httpx.Response:
    """Post a good body with a change to it; NaN and infinity travel as Python writes them."""
    good = {"model": "bundled", "messages": [USER]} if path == CHAT else server.completion()
    body = {name: value for name, value in {**good, **change}.items() if value is not MISSING}
    return server.http.post(path, content=json.dumps(body).encode())


@pytest.mark.parametrize(("path", "change", "name"), CASES)
def test_refusals_name_the_parameter(
    server: Server, path: str, change: dict[str, Any], name: str
) -> None:
    error = checked(server, send(server, path, change))

    assert error["type"] == "invalid_request_error"
    assert error["param"] == name or error["param"].startswith(f"{name}.")
    known = ("token ids", "choices", name.split(".")[0])
    assert any(word in error["message"] for word in known)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (CHAT, {"tools": [TOOL]}, "tools is not supported"),
        (CHAT, {"tool_choice": "auto"}, 'tool_choice is not supported, only "none"'),
        (CHAT, {"functions": [TOOL]}, "functions is not supported"),
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort is not supported"),
        (CHAT, {"parallel_tool_calls": True}, "parallel_tool_calls is not supported"),
        (CHAT, {"modalities": ["audio"]}, 'modalities is not supported, only ["text"]'),
        (CHAT, {"service_tier": "flex"}, 'service_tier is not supported, only "auto" or "default"'),
        (CHAT, {"store": True}, "store is not supported, only false"),
        (
            CHAT,
            {"messages": [USER, {"role": "user", "content": [TEXT_PART, IMAGE]}]},
            "messages.1.content: parts of type image_url are not supported, only text",
        ),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "a", "tool_call_id": "b"}]},
            "messages.0.role: the role tool is not supported",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [TOOL]}]},
            "messages.0.tool_calls is not supported",
        ),
        (TEXT, {"best_of": 3}, "best_of is not supported, only 1"),
        (TEXT, {"suffix": "the end"}, "suffix is not supported"),
    ],
)
def test_what_is_not_supported_is_said_in_our_words(
    server: Server, path: str, change: dict[str, Any], message: str
) -> None:
    error = checked(server, send(server, path, change))
    assert error["message"].startswith(message)
    assert error["code"] == "unsupported_parameter"


OFF: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
    "reasoning_effort": None,
    "messages": [
        {"role": "user", "content": [TEXT_PART]},
        {"role": "assistant", "content": "Hi", "tool_calls": [], "annotations": [], "audio": None},
        USER,
    ],
}


@pytest.mark.parametrize("name", OFF)
def test_values_that_mean_off_are_taken(server: Server, name: str) -> None:
    answer = send(server, CHAT, {name: OFF[name], "max_tokens": 1})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "change", "code"),
    [
        (TEXT, {"prompt": TOO_LONG}, "context_length_exceeded"),
        (TEXT, {"max_tokens": 5000}, "context_length_exceeded"),
        (CHAT, {"max_completion_tokens": 5000}, "context_length_exceeded"),
        (CHAT, {"messages": [{**USER, "content": "a " * 3000}]}, "context_length_exceeded"),
        (CHAT, {"surprise": 1}, "unknown_parameter"),
        (CHAT, {"n": "1"}, "invalid_value"),
    ],
)
def test_refusals_have_codes(server: Server, path: str, change: dict[str, Any], code: str) -> None:
    assert checked(server, send(server, path, change))["code"] == code


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", ["gpt-4", "", "bundled ", "Bundled", "../bundled"])
def test_unknown_models_are_not_found(server: Server, path: str, name: str) -> None:
    error = checked(server, send(server, path, {"model": name}), 404)

    assert error["param"] == "model"
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_no_request(server: Server, path: str, body: bytes) -> None:
    assert checked(server, server.http.post(path, content=body))["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("announced", [True, False])
def test_a_hundred_megabytes_are_refused(server: Server, path: str, announced: bool) -> None:
    block = b" " * 1_000_000

    def blocks() -> Iterator[bytes]:
        for _ in range(100):
            yield block

    headers = {"Content-Length": str(100 * len(block))} if announced else {}
    answer = server.http.post(path, content=blocks(), headers=headers)

    checked(server, answer, 413)
    assert answer.headers["Connection"] == "close"


def test_a_large_body_that_is_allowed(server: Server) -> None:
    body = json.dumps(server.completion(max_tokens=1)).encode() + b" " * 7_000_000

    assert server.http.post(TEXT, content=body).status_code == 200


def test_a_long_text_holds_nobody_up(server: Server) -> None:
    """While megabytes are encoded, others are answered."""
    body = json.dumps(server.completion("word " * 400_000)).encode()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.http.post, TEXT, content=body)
        answered = 0
        while not long.done():
            answered += server.http.get("/health").status_code == 200

    assert checked(server, long.result())["param"] == "prompt"
    assert answered >= 40


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("PUT", TEXT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1", 404),
        ("POST", "/v1/chat/completions/x", 404),
    ],
)
def test_wrong_methods_and_paths(server: Server, method: str, path: str, status: int) -> None:
    answer = server.http.request(method, path)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert path in answer.json()["error"]["message"]
    assert answer.headers["X-Request-Id"]
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x00\xff\x00\xff" * 100,
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}",
    ],
    ids=["garbage", "binary", "half a body", "bad chunk", "negative length"],
)
def test_broken_connections_do_no_harm(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)

    assert server.http.get("/health").status_code == 200


def test_the_server_still_serves(server: Server) -> None:
    """Last in this file: after all of the above, nothing hangs and answers are whole."""
    answer = server.http.post(TEXT, json=server.completion(max_tokens=5))

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 5
    server.wait_idle()
    assert server.metric("conservation_violations_total") == 0
    assert server.metric("kv_blocks_free") > 0
