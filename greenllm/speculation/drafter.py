"""The drafter protocol: the only thing the engine knows about who proposes draft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from greenllm.core import Chunk, DraftPass
from greenllm.shape import ModelShape


class Drafter(Protocol):
    """Proposes draft tokens after the newest token of decoding sequences.

    It may write their keys and values into the chunks' room, and nowhere else.
    """

    @property
    def shape(self) -> ModelShape | None:
        """What a draft token costs; None when no model is asked."""

    @property
    def passes(self) -> Sequence[DraftPass]:
        """What the last draft computed, whose costs are shared pass by pass."""

    def prepare(self, num_tokens: int) -> None:
        """Do what the first draft of so many tokens would wait for; callable from any thread."""

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """Up to `room` draft tokens for each chunk, which ends with its sequence's newest token.

        `whole` says that the step will run nothing but these chunks.
        """
