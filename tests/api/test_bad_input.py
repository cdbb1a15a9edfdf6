"""What cannot be served is refused by name, leaves a row, and does no harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp
    from tests.api.machine import SlowTokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
TOO_LONG = [9] * 2000
NAN, INFINITY = float("nan"), float("inf")
AS_JSON = {"Content-Type": "application/json"}
MISSING = object()
NO_MESSAGE, BAD_USER = {"role": "user"}, {"role": "user", "content": 5}

# Values that a parameter may not have; the error names it, or a part of it.
BOTH: dict[str, list[Any]] = {
    "model": [MISSING, 5],
    "temperature": [-0.1, 2.1, NAN, INFINITY, "hot", True],
    "top_p": [0, 1.1, NAN],
    "top_k": [1.5, -7],
    "min_p": [-0.1],
    "repetition_penalty": [0, 1e-40],
    "presence_penalty": [2.1],
    "frequency_penalty": [-2.1],
    "n": [0, -1, 129, "2"],
    "max_tokens": [-1, 5000, 10**12, 10**30, "5"],
    "min_tokens": [10**9],
    "seed": ["x"],
    "stop": ["", ["a", ""], ["a"] * 17, 5, "a" * 1025],
    "stop_token_ids": [["a"], [99999], [-1], [1] * 1025],
    "logit_bias": [
        {"abc": 1}, {"1.5": 1}, {"1_0": 1}, {"\u0663": 1}, {"5": 101}, {"5": NAN}, {"99999": 1},
        {"-1": 1}, [1], {str(n): 1 for n in range(1025)},
    ],
    "stream": ["yes"],
    "stream_options": [{"include_obfuscation": True}, {"continuous": True}],
    "metadata": [{"a": 1}],
    "prompt_logprobs": [21],
    "speculative": ["prompt_lookup"],
    "speculative.method": [
        {}, {"num_tokens": 4}, {"method": "magic"}, {"method": None}, {"method": "draft_model"},
    ],
    "speculative.num_tokens": [
        {"method": "prompt_lookup", "num_tokens": 0},
        {"method": "prompt_lookup", "num_tokens": 17},
        {"method": "prompt_lookup", "num_tokens": "4"},
        {"method": "auto", "num_tokens": 4},
        {"method": "off", "num_tokens": 4},
    ],
    "speculative.exit_layer": [{"method": "off", "exit_layer": 2}],
    "approximate": [{}, {"agreement": 0.9, "threshold": 0.9}, "yes"],
    "approximate.agreement": [{"agreement": 1}, {"agreement": 0.9999}],
    "approximate.threshold": [{"threshold": 0}, {"threshold": 1}],
    "use_beam_search": [True],
    "UseBeamSearch": [True],
    "use-beam-search": [True],
}  # fmt: skip
ONLY_CHAT: dict[str, list[Any]] = {
    "messages": [MISSING, [], "Hello", [{"role": "user", "content": "word " * 2000}]],
    "messages.0.role": [[{"role": "alien", "content": "Hi"}]],
    "messages.1.content": [[USER, NO_MESSAGE]],
    "messages.0.content": [[BAD_USER], [{"role": "user", "content": [IMAGE]}]],
    "messages.0.tool_calls": [[{**USER, "tool_calls": [{}]}]],
    "max_completion_tokens": [5000, 5],
    "logprobs": [5],
    "top_logprobs": [5, 21],
    "response_format": [SCHEMA, {"type": "json_object"}, {"type": "xml"}],
    "response_format.json_schema": [{"type": "json_schema"}],
    "best_of": [1],
    "prompt": ["a"],
}
ONLY_TEXT: dict[str, list[Any]] = {
    "prompt": [
        MISSING, None, "", [], [""], ["a", ""], [[]], [1.5], [True], ["a", 5], {"text": "a"},
        [99999], [5, -1], [[5], [99999]], [10**30], TOO_LONG, [[5]] * 4097, "word " * 2000,
        ["a"] * 4097,
    ],
    "logprobs": [21, True],
    "echo": ["yes"],
    "messages": [[USER]],
}  # fmt: skip
TOGETHER: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (TEXT, {"prompt": [9] * 1000, "max_tokens": 100}, "max_tokens"),
    (TEXT, {"prompt": ["a"] * 50, "n": 128}, "prompt"),
]
CASES = [
    *(
        (path, {name.partition(".")[0]: value}, name)
        for path, table in ((CHAT, BOTH | ONLY_CHAT), (TEXT, BOTH | ONLY_TEXT))
        for name, values in table.items()
        for value in values
    ),
    *TOGETHER,
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


def checked(server: App, answer: httpx.Response, status: int = 400) -> dict[str, Any]:
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


def send(server: App, path: str, change: dict[str, Any]) -> httpx.Response:
    """Post a good body with a change to it; NaN and infinity travel as Python writes them."""
    good = server.chat() if path == CHAT else server.completion()
    body = {
        name: value
        for name, value in {**good, "stream": True, "max_tokens": 8, **change}.items()
        if value is not MISSING
    }
    return server.http.post(path, content=json.dumps(body).encode(), headers=AS_JSON)


@pytest.mark.parametrize("content", [BODIES["list"], BODIES["null"], BODIES["text"]])
def test_a_body_of_another_kind_is_called_the_body(server: App, content: bytes) -> None:
    error = checked(server, server.http.post(CHAT, content=content, headers=AS_JSON))
    assert error["message"].startswith("the body: ")
    assert error["param"] is None


@pytest.mark.parametrize(("path", "change", "name"), CASES)
def test_refusals_name_the_parameter(
    server: App, path: str, change: dict[str, Any], name: str
) -> None:
    error = checked(server, send(server, path, change))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == name or error["param"].startswith(f"{name}.")
    known = ("token ids", "choices", name.split(".")[0], name.split(".")[-1])
    assert any(word in error["message"] for word in known)


@pytest.mark.parametrize(
    ("path", "change", "code"),
    [
        (TEXT, {"prompt": TOO_LONG}, "context_length_exceeded"),
        (TEXT, {"max_tokens": 5000}, "context_length_exceeded"),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 5000}, "context_length_exceeded"),
        (CHAT, {"messages": [{**USER, "content": "a " * 3000}]}, "context_length_exceeded"),
        (CHAT, {"surprise": 1}, "unknown_parameter"),
        (CHAT, {"n": "1"}, "invalid_value"),
    ],
)
def test_refusals_have_codes(server: App, path: str, change: dict[str, Any], code: str) -> None:
    assert checked(server, send(server, path, change))["code"] == code


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", ["gpt-4", "", "bundled ", "Bundled", "../bundled"])
def test_unknown_models_are_not_found(server: App, path: str, name: str) -> None:
    error = checked(server, send(server, path, {"model": name}), 404)
    assert error["param"] == "model"
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_no_request(server: App, path: str, body: bytes) -> None:
    assert checked(server, server.http.post(path, content=body, headers=AS_JSON))["message"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_too_large_is_not_read_to_its_end(server: App, path: str, announced: bool) -> None:
    """Nothing of it, or only as much as lets a client that writes on see its answer."""
    block, sent = b" " * 1_000_000, []

    def blocks() -> Iterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield block

    headers = AS_JSON | ({"Content-Length": str(100 * len(block))} if announced else {})
    answer = server.http.post(path, content=blocks(), headers=headers)
    checked(server, answer, 413)
    assert answer.headers["Connection"] == "close"
    assert len(sent) == (0 if announced else 33), "8 MB are allowed, and four times 8 thrown away"


def test_what_is_a_little_too_large_is_read_and_thrown_away(server: App) -> None:
    """Else a client that is still writing sees its connection break, and no answer."""
    answer = server.http.post(TEXT, content=b" " * 9_000_000, headers=AS_JSON)
    assert "8 MB" in checked(server, answer, 413)["message"]
    waiting = {**AS_JSON, "Expect": "100-continue", "Content-Length": "9000000"}

    taken: list[bool] = []

    def parts() -> Iterator[bytes]:
        taken.append(True)
        yield b" "

    checked(server, server.http.post(TEXT, content=parts(), headers=waiting), 413)
    assert taken == [], "it asked before"


def test_log_probabilities_have_a_bound(server: App) -> None:
    asked = {"logprobs": 20, "n": 128, "max_tokens": 1000, "prompt": ["a", "b"]}
    error = checked(server, send(server, TEXT, asked))
    assert (error["param"], error["code"]) == ("logprobs", None)
    assert "max_tokens" in error["message"]


def test_a_large_body_that_is_allowed(server: App) -> None:
    body = json.dumps(server.completion(max_tokens=1)).encode() + b" " * 7_000_000
    assert server.http.post(TEXT, content=body, headers=AS_JSON).status_code == 200


def test_a_long_text_holds_nobody_up(start_app: StartApp, slowly: SlowTokenizer) -> None:
    """While megabytes are encoded, others are answered."""
    server = start_app(tokenizer=slowly)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.http.post, TEXT, json=server.completion("slowly " * 20_000))
        assert slowly.reached.wait(PATIENCE_S)
        assert server.http.post(TEXT, json=server.completion()).status_code == 200
        slowly.may_go_on.set()
    assert checked(server, long.result())["param"] == "prompt"


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
def test_wrong_methods_and_paths(server: App, method: str, path: str, status: int) -> None:
    answer = server.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert path in answer.json()["error"]["message"]
    assert answer.headers["X-Request-Id"]
    assert ("Allow" in answer.headers) == (status == 405)


def test_the_server_still_serves(server: App) -> None:
    """Last in this file: after all of the above, nothing hangs and answers are whole."""
    answer = server.http.post(TEXT, json=server.completion(max_tokens=5))
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 5
    server.wait_idle()
    assert server.metric("conservation_violations_total") == 0
    assert server.metric("kv_blocks_free") > 0
