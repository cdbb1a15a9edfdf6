"""What a task is: so many examples, each a query, and what the model's answer to it is worth.

    count() -> int        example(i) -> Query        score(i, answer) -> Score

Contract: tasks know nothing of models, servers or joules; `example` and `score` are functions of
the number. A task's figure is the sum of its scores' values over the sum of their weights.

Not covered: tasks whose next question depends on the last answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from greenllm.core import GreenllmError

Measure = Literal["accuracy", "bits per byte"]


class TaskError(GreenllmError):
    """A task cannot be read, or there is no such one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question: turns of a chat, the last one the user's. Greedy, up to `max_tokens`."""

    turns: tuple[Mapping[str, str], ...]
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Rate:
    """Texts whose log probability is wanted, each after its context; none where it begins."""

    pairs: tuple[tuple[str, str], ...]


Query = Ask | Rate


@dataclass(frozen=True, slots=True)
class Rating:
    """Natural log probability of a text, and its tokens."""

    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, or a rating for each pair."""

    text: str = ""
    ratings: tuple[Rating, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """An example's part of a task's figure."""

    value: float
    weight: float = 1.0


class Task(Protocol):
    """See the module; `chance` is what guessing would get, None where there is no such figure."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def measure(self) -> Measure:
        """What the figure means; accuracy is better high, bits per byte low."""

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing."""

    def count(self) -> int:
        """Examples there are."""

    def example(self, i: int) -> Query:
        """What is asked."""

    def score(self, i: int, answer: Answer) -> Score:
        """What an answer is worth."""
