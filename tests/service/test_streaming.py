"""Streams: the official client's view, and the raw events in their order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

STORY = "Tell me a story about a brave fox."
USAGE = {"include_usage": True}


def stream_chat(client: openai.OpenAI, **options: Any) -> list[Any]:
    """Chunks of one greedy answer of 24 tokens, unless told otherwise."""
    options = {"temperature": 0, "max_completion_tokens": 24, **options}
    stream = client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": STORY}], stream=True, **options
    )
    with stream:
        return list(stream)


def raw_events(server: Server, path: str, body: dict[str, Any]) -> tuple[httpx.Headers, list[str]]:
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
    chunks = stream_chat(client)
    whole = client.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": STORY}],
        temperature=0,
        max_completion_tokens=24,
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])


def test_usage_chunk_is_last_and_carries_the_energy(server: Server, client: openai.OpenAI) -> None:
    chunks = stream_chat(client, stream_options=USAGE, extra_body={"ignore_eos": True})

    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 24
    energy = usage.model_extra["energy"]
    receipt = server.http.get(f"/v1/energy/{chunks[0].id}").json()
    assert energy["energy_joules"] > 0
    assert {name: receipt[name] for name in energy} == energy


def test_no_usage_chunk_unless_asked_for(client: openai.OpenAI) -> None:
    assert all(chunk.choices for chunk in stream_chat(client))


def test_order_of_events(server: Server) -> None:
    body = server.chat(max_tokens=3, stream_options=USAGE)
    headers, blocks = raw_events(server, "/v1/chat/completions", body)

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


def test_energy_comment_agrees_with_the_receipt(server: Server) -> None:
    _, blocks = raw_events(server, "/v1/completions", server.completion(max_tokens=12))

    energy = energy_of(blocks)
    receipt = server.http.get(f"/v1/energy/{energy['request_id']}").json()
    assert energy["status"] == "final"
    assert {name: receipt[name] for name in energy} == energy


def test_n_streams_interleave_by_index(client: openai.OpenAI) -> None:
    chunks = stream_chat(client, n=3, temperature=1, seed=2, extra_body={"ignore_eos": True})

    ends = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
    roles = [c.choices[0].index for c in chunks if c.choices[0].delta.role]
    assert sorted(ends) == [0, 1, 2]
    assert roles == [0, 1, 2]


def test_streamed_logprobs_match_the_tokens(client: openai.OpenAI) -> None:
    chunks = stream_chat(client, logprobs=True, top_logprobs=2, extra_body={"ignore_eos": True})

    tokens = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(tokens) == 24
    assert "".join(token.token for token in tokens) == text


def test_completion_stream(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": ["The sun", "A dog"], "max_tokens": 6, "temperature": 0}
    stream = client.completions.create(model="bundled", stream=True, echo=True, **options)
    with stream:
        chunks = list(stream)
    whole = client.completions.create(model="bundled", echo=True, **options)

    for choice in whole.choices:
        mine = [c.choices[0].text for c in chunks if c.choices[0].index == choice.index]
        assert "".join(mine) == choice.text


def test_completion_stream_with_echo_and_logprobs(server: Server) -> None:
    ids = server.tokenize("The dog and the cat")
    body = server.completion(ids, max_tokens=4, temperature=0, echo=True, logprobs=1)
    _, blocks = raw_events(server, "/v1/completions", body)
    whole = server.http.post("/v1/completions", json=body).json()["choices"][0]

    choices = [event["choices"][0] for event in data_of(blocks)]
    joined = {
        name: [value for choice in choices for value in choice["logprobs"][name]]
        for name in ("tokens", "token_logprobs", "text_offset")
    }
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert joined["tokens"] == whole["logprobs"]["tokens"]
    assert joined["text_offset"] == whole["logprobs"]["text_offset"]
    assert len(joined["token_logprobs"]) == len(ids) + 4
    assert joined["token_logprobs"][0] is None


def test_stop_string_never_leaves(client: openai.OpenAI) -> None:
    free = "".join(c.choices[0].delta.content or "" for c in stream_chat(client))
    stop = free[len(free) // 2 :][:6]
    chunks = stream_chat(client, stop=stop)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == free[: free.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_keep_alive_while_a_request_waits(slow_server: Server) -> None:
    """One request holds the only place; the other hears that it is not forgotten."""
    long = slow_server.completion("a", max_tokens=900, stream=True)
    short = slow_server.completion("b", max_tokens=2, stream=True)
    with slow_server.http.stream("POST", "/v1/completions", json=long) as holding:
        lines = holding.iter_lines()
        assert any(line.startswith("data: ") for line in lines)
        with slow_server.http.stream("POST", "/v1/completions", json=short) as waiting:
            events = waiting.iter_lines()
            first = next(events)
            holding.close()
            rest = [line for line in events if line]

    assert first == ": keep-alive"
    assert rest[-1] == "data: [DONE]"
    slow_server.wait_idle()


def test_keep_alive_during_a_long_prefill(slow_server: Server) -> None:
    body = slow_server.completion([5 + i % 900 for i in range(1000)], max_tokens=2)
    _, blocks = raw_events(slow_server, "/v1/completions", body)

    assert blocks[0] == ": keep-alive"
    assert blocks[-1] == "data: [DONE]"
    assert data_of(blocks)[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["chat/completions", "completions"])
def test_stream_options_need_a_stream(server: Server, name: str) -> None:
    body = server.chat() if name.startswith("chat") else server.completion()
    answer = server.http.post(f"/v1/{name}", json={**body, "stream_options": USAGE})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream_options"


def test_prompt_logprobs_are_not_ignored_in_a_stream(server: Server) -> None:
    body = server.completion(stream=True, prompt_logprobs=1)
    answer = server.http.post("/v1/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt_logprobs"
