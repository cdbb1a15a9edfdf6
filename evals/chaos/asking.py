"""Questions whose right answers are known, and what a client makes of the replies.

Contract: an answer is its choices, as bytes that can be compared; of a stream those that its events
add up to. A reply that has no whole answer says honestly why (an error's status, an error in the
stream, a connection that broke), or it counts as a wrong one: a stream that ends in `[DONE]` and
tells of no error is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
# How a reply without a whole answer ends, where no status says it.
UNREACHABLE, CUT, IN_STREAM = "unreachable", "cut", "in stream"
SILENT, LEFT = "no end", "left"
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request, of which there is one; `key` is sent as bearer token."""

    path: str
    body: Mapping[str, Any]
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside the body."""
        found = {"Content-Type": "application/json"}
        return found if self.key is None else {**found, "Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; without an answer, `trouble` says why."""

    status: int | None = None
    request_id: str | None = None
    answer: bytes | None = None
    trouble: str | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether the client was told anything at all."""
        return self.status is not None or self.request_id is not None

    @property
    def needs_row(self) -> bool:
        """Whether the ledger must know it: what never became a request has an id of its own."""
        if self.request_id is None:
            return False
        return not self.request_id.startswith("req-") or (self.status or 0) >= 500


def questions(model: str) -> list[Question]:
    """Greedy and seeded, streamed and whole, with and without a key, long and short."""

    def body(number: int, max_tokens: int, **more: Any) -> dict[str, Any]:
        is_greedy = number % 2 == 0
        way = {"temperature": 0} if is_greedy else {"temperature": 0.8, "seed": number}
        return {"model": model, "max_tokens": max_tokens, "ignore_eos": True, **way, **more}

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    fox = "Once upon a time a fox"
    return [
        Question(COMPLETIONS, body(0, 16, prompt=fox)),
        Question(COMPLETIONS, body(1, 24, prompt=fox, stream=True), "chaos-first-key-0123456789"),
        Question(CHATS, body(2, 32, messages=turn("Tell me about an owl."), stream=True)),
        Question(CHATS, body(3, 8, messages=turn("Sort: c, a, b")), "chaos-other-key-0123456789"),
        Question(COMPLETIONS, body(4, 12, prompt=[fox, "The owl"]), "chaos-first-key-0123456789"),
        Question(COMPLETIONS, body(5, 20, prompt="A long way", n=2)),
    ]


async def ask(http: aiohttp.ClientSession, url: str, question: Question) -> Reply:
    """Send a question and read its reply to the end, however it ends."""
    status = request_id = None
    is_streamed = bool(question.body.get("stream"))
    try:
        asked = http.post(url + question.path, json=question.body, headers=question.headers)
        async with asked as response:
            status, request_id = response.status, response.headers.get("X-Request-Id")
            raw = await response.read()
    except TimeoutError:
        return Reply(status, request_id, trouble=SILENT)
    except (aiohttp.ClientError, OSError):
        return Reply(status, request_id, trouble=UNREACHABLE if status is None else CUT)
    if status != 200:
        return Reply(status, request_id, trouble=str(status))
    try:
        answer, trouble = streamed_answer(raw) if is_streamed else (whole_answer(raw), None)
    except (ValueError, LookupError, TypeError):
        answer, trouble = raw, None  # which is no right answer
    return Reply(status, request_id, answer, trouble)


def whole_answer(raw: bytes) -> bytes:
    """The choices of a body."""
    return _canonical(json.loads(raw)["choices"])


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None


def streamed_answer(raw: bytes) -> tuple[bytes | None, str | None]:
    """What the events of a stream add up to, or what is wrong with it."""
    lines = [line.strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
    events = [json.loads(line[5:]) for line in lines if line != _DONE]
    if any("error" in event for event in events):
        return None, IN_STREAM
    if _DONE not in lines:
        return None, CUT
    choices: dict[int, _Choice] = {}
    for one in (choice for event in events for choice in event["choices"]):
        found = choices.setdefault(one["index"], _Choice())
        text = one["text"] if "text" in one else one["delta"].get("content")
        found.text.append(text or "")
        found.finish_reason = one["finish_reason"] or found.finish_reason
    told = [[i, "".join(c.text), c.finish_reason] for i, c in sorted(choices.items())]
    return _canonical(told), None


def _canonical(choices: Sequence[Any]) -> bytes:
    return json.dumps(choices, sort_keys=True, ensure_ascii=False).encode()
