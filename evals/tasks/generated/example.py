"""The value every task produces, and the rule that splits examples into two disjoint sets.

Contract: an example carries one or more `keys` that name what must stay unseen (a pair of
numbers, a name, a word list). It is held out if any of its keys is, so no held-out key ever
occurs in training. Not covered: phrasings, which both sets share on purpose.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the wanted answer.

    `exact` says that the answer is the only right one, so that it can be scored by equality.
    """

    task: str
    messages: tuple[Message, ...]
    keys: tuple[str, ...]
    exact: bool

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns the model sees before it answers."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The wanted last turn."""
        return self.messages[-1].content


def is_held_out_key(key: str) -> bool:
    """Whether a key belongs to the held-out share (about one in sixteen)."""
    return hashlib.sha256(key.encode()).digest()[0] < 16


def is_held_out(example: Example) -> bool:
    """Whether any part of an example must stay unseen in training."""
    return any(is_held_out_key(key) for key in example.keys)


def ask(task: str, question: str, answer: str, keys: tuple[str, ...], exact: bool) -> Example:
    """One question with its answer."""
    return Example(task, (Message("user", question), Message("assistant", answer)), keys, exact)
