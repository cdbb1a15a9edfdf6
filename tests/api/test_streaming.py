"""Streams: the official client's view, and the raw events in their order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

STORY = "Tell me a story about a brave fox."
USAGE = {"include_usage": True}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat(client: openai.OpenAI, *, stream: bool = True, **options: Any) -> Any:
    """One greedy answer of 24 tokens, unless told otherwise."""
    options = {"temperature": 0, "max_completion_tokens": 24, **options}
    messages: list[Any] = [{"role": "user", "content": STORY}]
    return client.chat.completions.create(
        model="bundled", messages=messages, stream=stream, **options
    )


def stream_chat(client: openai.OpenAI, **options: Any) -> list[Any]:
    """The chunks of one."""
    with chat(client, **options) as stream:
        return list(stream)


def said(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def raw_events(server: App, path: str, body: dict[str, Any]) -> tuple[httpx.Headers, list[str]]:
    """Headers and the blocks of a stream, in order."""
    answer = server.http.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    return answer.headers, [block for block in answer.text.split("\n\n") if block]


def data_of(blocks: list[str]) -> list[dict[str, Any]]:
    """JSON of the data events."""
    texts = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def energy_of(blocks: list[str]) -> dict[str, Any]:
    """JSON of the energy comment."""
    (found,) = [block for block in blocks if block.startswith(": energy ")]
    energy: dict[str, Any] = json.loads(found.removeprefix(": energy "))
    return energy


def test_chunks_add_up_to_the_answer(client: openai.OpenAI) -> None:
    chunks, whole = stream_chat(client), chat(client, stream=False)
    assert said(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in chunks), "no usage chunk unless asked for"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])


def test_usage_chunk_is_last_and_carries_the_energy(server: App, client: openai.OpenAI) -> None:
    chunks = stream_chat(client, stream_options=USAGE)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 24
    energy = usage.model_extra["energy"]
    receipt = server.http.get(f"/v1/energy/{chunks[0].id}").json()
    assert energy["energy_joules"] > 0
    assert {name: receipt[name] for name in energy} == energy


def test_order_of_events(server: App) -> None:
    body = server.chat(max_tokens=3, stream_options=USAGE)
    headers, blocks = raw_events(server, CHAT, body)
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    request_id = headers["x-request-id"]
    assert headers["link"] == f'</v1/energy/{request_id}>; rel="describedby"'
    assert not [name for name in headers if name.startswith(("x-energy", "x-carbon"))]
    assert blocks[-1] == "data: [DONE]"
    assert blocks[-2].startswith(": energy ")
    usage = json.loads(blocks[-3].removeprefix("data: "))["usage"]
    assert usage["energy"] == energy_of(blocks)
    assert {event["id"] for event in data_of(blocks)} == {request_id}


def test_energy_comment_agrees_with_the_receipt(server: App) -> None:
    _, blocks = raw_events(server, TEXT, server.completion(max_tokens=12))
    energy = energy_of(blocks)
    receipt = server.http.get(f"/v1/energy/{energy['request_id']}").json()
    assert energy["status"] == "final"
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


def test_n_streams_interleave_by_index(client: openai.OpenAI) -> None:
    chunks = stream_chat(client, n=3, temperature=1, seed=2)
    ends = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
    roles = [c.choices[0].index for c in chunks if c.choices[0].delta.role]
    assert sorted(ends) == [0, 1, 2]
    assert roles == [0, 1, 2]


def test_streamed_logprobs_match_the_tokens(client: openai.OpenAI) -> None:
    chunks = stream_chat(client, logprobs=True, top_logprobs=2)
    found = [chunk.choices[0].logprobs for chunk in chunks]
    tokens = [token for logprobs in found if logprobs for token in logprobs.content or []]
    assert len(tokens) == 24
    assert "".join(token.token for token in tokens) == said(chunks)


def test_completion_stream(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": ["The sun", "A dog"], "max_tokens": 6, "temperature": 0}
    with client.completions.create(model="bundled", stream=True, echo=True, **options) as stream:
        chunks = list(stream)
    whole = client.completions.create(model="bundled", echo=True, **options)
    for choice in whole.choices:
        mine = [c.choices[0].text for c in chunks if c.choices[0].index == choice.index]
        assert "".join(mine) == choice.text


def test_completion_stream_with_echo_and_logprobs(server: App) -> None:
    ids = server.tokenize("The dog and the cat")
    body = server.completion(ids, max_tokens=4, temperature=0, echo=True, logprobs=1)
    _, blocks = raw_events(server, TEXT, body)
    whole = server.http.post(TEXT, json=body).json()["choices"][0]
    choices = [event["choices"][0] for event in data_of(blocks)]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for choice in choices for value in choice["logprobs"][name]]
        assert joined == whole["logprobs"][name]
    assert len(whole["logprobs"]["token_logprobs"]) == len(ids) + 4


def test_stop_string_never_leaves(client: openai.OpenAI) -> None:
    free = said(stream_chat(client))
    stop = free[len(free) // 2 :][:6]
    chunks = stream_chat(client, stop=stop)
    assert said(chunks) == free[: free.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


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
