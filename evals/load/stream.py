"""Reads one streamed answer: server-sent events in, tokens, times and the reason of the end out.

Contract: no I/O. Feed it bytes as they come with the time they came at; it never waits for more
than a whole line. An answer counts only if it ended as the protocol says (`[DONE]`), gave a reason
for its end and, where a fixed length was asked for, has that many tokens by the server's own usage,
or failing that by its `length` reason.

Not covered: several choices, tool calls, events of more than one data line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

MAX_REASON = 300


@dataclass(slots=True)
class StreamReader:
    """State of one answer; some servers end with the last chunk instead of `[DONE]`."""

    ends_with_done: bool = True
    first_s: float | None = None
    last_s: float | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    error: str | None = None
    pieces: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes, now_s: float) -> None:
        """Take in what has arrived."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.error = self.error or f"not JSON: {excerpt(data)}"
            return
        if event.get("error"):
            self.error = self.error or excerpt(json.dumps(event["error"]).encode())
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        for choice in event.get("choices") or ():
            self._choice(choice, now_s)

    def _choice(self, choice: dict[str, Any], now_s: float) -> None:
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            self.pieces += 1
            self.last_s = now_s
            if self.first_s is None:
                self.first_s = now_s
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def tokens(self, max_tokens: int) -> int | None:
        """How many tokens the answer has; None if nobody says."""
        told = self.usage.get("completion_tokens")
        if isinstance(told, int):
            return told
        return max_tokens if self.finish_reason == "length" else None

    def failure(self, max_tokens: int, *, fixed_length: bool) -> str | None:
        """Why this answer does not count, or None."""
        if self.error is not None:
            return f"error in the stream: {self.error}"
        if self.ends_with_done and not self.done:
            return "cut short: the stream ended without [DONE]"
        if self.finish_reason is None:
            return "cut short: no finish_reason"
        if self.finish_reason not in ("length", "stop"):
            return f"cut short: finish_reason {self.finish_reason}"
        tokens = self.tokens(max_tokens)
        if tokens is None:
            return "the server does not say how many tokens it sent"
        if fixed_length and tokens != max_tokens:
            return f"cut short: {tokens} of {max_tokens} tokens"
        return None


def excerpt(body: bytes) -> str:
    """The beginning of a body, on one line."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
