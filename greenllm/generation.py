"""Answers as `greenllm.LLM` gives them: whole with their receipt, or piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greenllm.choices import Choice
from greenllm.core import GreenllmError, Token
from greenllm.energy.receipt import Receipt

Pieces = queue.Queue[Token | None]


class GenerationError(GreenllmError):
    """The engine failed on this request; others go on. `receipt` has the joules it took."""

    def __init__(self, message: str, receipt: Receipt) -> None:
        super().__init__(message)
        self.receipt = receipt


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one prompt: `n` choices, of which `text` is the first one's, and the bill."""

    request_id: str
    choices: tuple[Choice, ...]
    receipt: Receipt

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text


class Stream(Iterator[str]):
    """Pieces of the first choice's text as they come; afterwards `generation` has everything.

    Closing it, leaving its `with` block or letting go of it stops the work.
    """

    def __init__(
        self, pieces: Pieces, finish: Callable[[], Generation], abandon: Callable[[], None]
    ) -> None:
        self._pieces = pieces
        self._finish = finish
        self._abandon = abandon
        self._ended = False

    def __next__(self) -> str:
        while not self._ended:
            try:
                token = self._pieces.get()
            except KeyboardInterrupt:
                self.close()
                raise
            if token is None:
                self._ended = True
            elif text := first_text(token):
                return text
        # An error of the engine is raised here, not swallowed.
        _ = self.generation
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """The whole answer with its receipt; waits for the end."""
        return self._finish()

    def close(self) -> None:
        """Stop the work, if it goes on."""
        self._ended = True
        self._abandon()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def first_text(token: Token) -> str:
    """The text that a token adds to the first choice; nothing for others."""
    return token.text if token.index == 0 else ""
