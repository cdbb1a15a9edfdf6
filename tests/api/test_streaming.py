"""Streams: the official client's view, and the raw events in their order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from greenllm.tokenizer import Tokenizer
    from tests.api.conftest import App, StartApp

USAGE = {"include_usage": True}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def raw_events(server: App, path: str, body: dict[str, Any]) -> tuple[httpx.Headers, list[str]]:
    """Headers and the blocks of a stream, in order."""
    answer = server.http.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    return answer.headers, [block for block in answer.text.split("\n\n") if block]


def data_of(blocks: list[str]) -> list[dict[str, Any]]:
    """JSON of the data events."""
    return [json.loads(block[6:]) for block in blocks if block.startswith("data: {")]


def test_the_official_client_reads_chat_chunks(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": "Hi"}], n=3, stream=True,
        max_completion_tokens=4,
    ) as stream:  # fmt: skip
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in chunks), "no usage chunk unless asked for"
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.index for choice in choices if choice.delta.role] == [0, 1, 2]
    for index in range(3):
        reasons = [choice.finish_reason for choice in choices if choice.index == index]
        assert (reasons[-1], any(reasons[:-1])) == ("length", False)


def test_order_of_events(server: App) -> None:
    body = server.chat(max_tokens=3, stream_options=USAGE)
    headers, blocks = raw_events(server, CHAT, body)
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    request_id = headers["x-request-id"]
    assert headers["link"] == f'</v1/energy/{request_id}>; rel="describedby"'
    assert not [name for name in headers if name.startswith(("x-energy", "x-carbon"))]
    assert blocks[-1] == "data: [DONE]"
    *chunks, last = data_of(blocks)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {event["id"] for event in (*chunks, last)} == {request_id}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert blocks[-2].startswith(": energy ")
    energy = json.loads(blocks[-2].removeprefix(": energy "))
    assert last["usage"]["energy"] == energy
    receipt = server.http.get(f"/v1/energy/{request_id}").json()
    assert energy["status"] == "final"
    assert energy["energy_joules"] > 0
    assert {name: receipt[name] for name in energy} == energy


def test_tokens_leave_when_they_are_made(start_app: StartApp) -> None:
    """Not at the end: what has been said is there while the engine stands still."""
    server = start_app(stream_interval_s=0.0)
    body = server.chat("Hi", max_tokens=8, temperature=0)
    whole = server.http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    with (
        server.machine.held(after_steps=5),
        server.http.stream("POST", CHAT, json={**body, "stream": True}) as answer,
    ):
        lines, text = (line for line in answer.iter_lines() if line), ""
        while len(text) < len(whole) // 2:
            chunk = json.loads(next(lines).removeprefix("data: "))
            text += chunk["choices"][0]["delta"].get("content", "")
        assert whole.startswith(text)
        assert text != whole


def test_offsets_of_a_stream_are_those_of_the_whole_answer(
    server: App, tokenizer: Tokenizer
) -> None:
    """Special tokens are not in the text, and move nothing."""
    special = next(i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i))
    for prompt in ([special, 5, 6], [5, special, 6]):
        body = server.completion(prompt, max_tokens=4, temperature=0, echo=True, logprobs=1)
        whole = server.http.post(TEXT, json=body).json()["choices"][0]["logprobs"]
        _, blocks = raw_events(server, TEXT, body)
        parts = [choice["logprobs"] for chunk in data_of(blocks) for choice in chunk["choices"]]
        for name in ("text_offset", "tokens"):
            assert [one for part in parts for one in part[name]] == whole[name]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_completion_stream_with_echo(server: App, logprobs: int | None) -> None:
    ids = [server.tokenize(text) for text in ("The dog and the cat", "A")]
    body = server.completion(ids, max_tokens=4, temperature=0, echo=True, logprobs=logprobs)
    _, blocks = raw_events(server, TEXT, body)
    parts = [event["choices"][0] for event in data_of(blocks)]
    for choice in server.http.post(TEXT, json=body).json()["choices"]:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for part in mine for value in part["logprobs"][name]] == values


@pytest.mark.parametrize("after_steps", [0, 3])
def test_a_silent_stream_is_kept_alive(start_app: StartApp, after_steps: int) -> None:
    """Before the first token, while a prompt waits or is computed, and between two."""
    server = start_app(keep_alive_s=0.01)
    body = server.completion(max_tokens=5, stream=True)
    with (
        server.machine.held(after_steps),
        server.http.stream("POST", TEXT, json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        assert any(line == ": keep-alive" for line in lines)
        server.machine.go_on()
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-3]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "change", [{"stream_options": USAGE}, {"stream": True, "prompt_logprobs": 1}]
)
def test_what_does_not_go_with_a_stream_or_without(
    server: App, path: str, change: dict[str, Any]
) -> None:
    body = server.chat() if path == CHAT else server.completion()
    answer = server.http.post(path, json={**body, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == list(change)[-1]
