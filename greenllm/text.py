"""Incremental text of one answer: ids in, certain text out. No torch.

Text that may still turn out to be the start of a stop string, or the start of a multi-byte
character, is held back until it is certain. The stop string itself and what follows never leave.

Not covered: stop strings before `min_tokens` (they are ignored until then, as in the text so far).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from greenllm.core import Event


class TextStream:
    """A `core.AnswerSink` over a decoder of ids.

    `step` takes an id and returns the text it completes, or None; `tail` returns the text of ids
    that completed nothing.
    """

    def __init__(
        self,
        step: Callable[[int], str | None],
        tail: Callable[[list[int]], str],
        *,
        stop: Collection[str] = (),
        min_tokens: int = 0,
    ) -> None:
        self.stopped = False
        self._step = step
        self._tail = tail
        self._stop = stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._undecoded: list[int] = []
        self._held = ""

    def push(self, token_id: int) -> tuple[Event, ...]:
        """Take one id; return the text that is now certain."""
        text = self.decode(token_id)
        return (text,) if text else ()

    def flush(self) -> tuple[Event, ...]:
        """Return what was held back; nothing after a stop string."""
        text = self.rest()
        return (text,) if text else ()

    def decode(self, token_id: int) -> str:
        """Take one id; return the text that is now certain."""
        self._num_tokens += 1
        self._undecoded.append(token_id)
        text = self._step(token_id)
        if text is None:
            return ""
        self._undecoded.clear()
        return self._release(self._held + text)

    def rest(self) -> str:
        """Return what was held back; nothing after a stop string."""
        if self.stopped:
            return ""
        rest = self._held + (self._tail(self._undecoded) if self._undecoded else "")
        self._undecoded.clear()
        self._held = ""
        return self._cut(rest)

    def _release(self, text: str) -> str:
        """Split text into what is certain and what is held."""
        if self._num_tokens < self._min_tokens:
            self._held = ""
            return text
        text = self._cut(text)
        if self.stopped:
            self._held = ""
            return text
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _cut(self, text: str) -> str:
        """Cut at the earliest stop string, if there is one."""
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if not places or self._num_tokens < self._min_tokens:
            return text
        self.stopped = True
        return text[: min(places)]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
