"""The part of vLLM that is used, so that tests can stand in for it.

Contract: names are the sequences' own; whoever calls holds vLLM's lock, except for `check_grammar`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from greenllm.core import Grammar


class Backend(Protocol):
    """The part of vLLM that is used, so that tests can stand in for it."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks of keys and values that nobody uses."""

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        values: Mapping[str, Any],
        adapter: str | None,
        salt: str | None,
    ) -> None:
        """Queue a sequence; `adapter` is a digest that `load` has seen.

        Sequences of another `salt` share no blocks with it.
        """

    def check_grammar(self, grammar: Grammar) -> None:
        """Refuse a grammar that answers cannot be held to, as an `InvalidRequestError`."""

    def step(self) -> list[Any]:
        """Run a step; vLLM's `RequestOutput`s."""

    def abort(self, names: Sequence[str]) -> None:
        """End sequences; no output comes of them any more."""

    def load(self, digest: str, name: str, folder: Path) -> None:
        """Have an adapter ready, or raise `AdapterError`."""
