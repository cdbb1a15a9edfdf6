"""Tasks that are asked and answered in words: exact, as JSON, as SQL, or by their last number.

Not covered: answers that say the same in other words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.tasks.base import Answer, Ask, Measure, Score, TaskError

Matches = Callable[[str, str], bool]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """Turns of a chat and the wanted answer."""

    turns: tuple[Mapping[str, str], ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions whose answers are compared with the wanted ones.

    `shots` go before every question as turns that were answered already.
    """

    name: str
    items: Sequence[Question]
    matches: Matches
    max_tokens: int = 64
    shots: Sequence[Question] = ()
    measure: Measure = "accuracy"
    chance: float | None = 0.0

    def count(self) -> int:
        """Questions."""
        return len(self.items)

    def example(self, i: int) -> Ask:
        """A question after the shots."""
        turns: list[Mapping[str, str]] = []
        for shot in self.shots:
            turns += [*shot.turns, {"role": "assistant", "content": shot.answer}]
        return Ask((*turns, *self.items[i].turns), self.max_tokens)

    def score(self, i: int, answer: Answer) -> Score:
        """Whether it matches."""
        return Score(float(self.matches(answer.text, self.items[i].answer)))


def is_same(text: str, wanted: str) -> bool:
    """Letter by letter, but for space around it."""
    return text.strip() == wanted.strip()


def is_same_json(text: str, wanted: str) -> bool:
    """The same value, however it is written; what is no JSON is wrong."""
    try:
        return bool(json.loads(text) == json.loads(wanted))
    except ValueError:
        return False


def is_same_sql(text: str, wanted: str) -> bool:
    """The same words, whatever their case outside of quotes and the space between them."""
    return _sql_words(text) == _sql_words(wanted)


def _sql_words(text: str) -> list[str]:
    words = re.findall(r"'(?:[^']|'')*'|\"[^\"]*\"|[\w.%-]+|[^\s\w]", text.strip().rstrip(";"))
    return [word if word[0] in "'\"" else word.lower() for word in words]


def is_same_number(text: str, wanted: str) -> bool:
    """The last number of each is the same, as GSM8K's answers end with theirs."""
    found, right = _last_number(text), _last_number(wanted)
    return found is not None and found == right


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


@dataclass(frozen=True, slots=True)
class Kind:
    """How answers of a kind are compared, and how long they may be."""

    matches: Matches
    max_tokens: int


KINDS: Mapping[str, Kind] = {
    "exact": Kind(is_same, 128),
    "json": Kind(is_same_json, 128),
    "sql": Kind(is_same_sql, 128),
    "number": Kind(is_same_number, _STEP_TOKENS),
}


def question_of(where: str, row: Mapping[str, Any]) -> Question:
    """From `messages` or `prompt` or `question`, and `answer` or `completion`.

    Raises:
        TaskError: it has not one of each.
    """
    answer = _only(where, row, ("answer", "completion"))
    asked = _only(where, row, ("messages", "prompt", "question"))
    if not isinstance(answer, str):
        raise TaskError(f"{where}: the answer must be a text")
    if isinstance(asked, str):
        return Question(({"role": "user", "content": asked},), answer)
    return Question(_turns(where, asked), answer)


def _only(where: str, row: Mapping[str, Any], names: Sequence[str]) -> Any:
    there = [name for name in names if name in row]
    if len(there) != 1:
        raise TaskError(f"{where} needs one of {', '.join(names)}; it has {len(there)} of them")
    return row[there[0]]


def _turns(where: str, found: Any) -> tuple[Mapping[str, str], ...]:
    is_list = isinstance(found, list) and bool(found)
    if not is_list or not all(isinstance(turn, Mapping) for turn in found):
        raise TaskError(f"{where}: messages must be a list of objects with role and content")
    for turn in found:
        if set(turn) != {"role", "content"} or not all(isinstance(v, str) for v in turn.values()):
            raise TaskError(f"{where}: a message must have a role and a content, both texts")
    return tuple(found)
