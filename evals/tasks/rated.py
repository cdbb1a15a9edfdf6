"""Tasks that are scored by log probability: perplexity, minimal pairs, multiple choice.

Contract: of alternatives the right one must be strictly likelier than every other: a model that
finds all alike gets none right. Log probabilities are sums over tokens, not means: alternatives of
one example should be of like lengths.

Not covered: letters as answers; normalising by length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.tasks.base import Answer, Measure, Rate, Score, TaskError


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Bits per byte of texts: independent of the tokenizer."""

    name: str
    texts: Sequence[str]
    measure: Measure = "bits per byte"
    chance: float | None = None

    def count(self) -> int:
        """Texts."""
        return len(self.texts)

    def example(self, i: int) -> Rate:
        """A text, from its beginning."""
        return Rate((("", self.texts[i]),))

    def score(self, i: int, answer: Answer) -> Score:
        """Bits, over bytes."""
        bits = -answer.ratings[0].logprob / math.log(2)
        return Score(bits, len(self.texts[i].encode()))


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """One right continuation among others."""

    context: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Choices:
    """Multiple choice by log probability; minimal pairs are choices of two without context."""

    name: str
    items: Sequence[MultipleChoice]
    measure: Measure = "accuracy"

    @property
    def chance(self) -> float | None:
        """Mean of one over the number of options."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)

    def count(self) -> int:
        """Questions."""
        return len(self.items)

    def example(self, i: int) -> Rate:
        """All options after the context."""
        item = self.items[i]
        return Rate(tuple((item.context, option) for option in item.options))

    def score(self, i: int, answer: Answer) -> Score:
        """Whether the right one is likelier than any other."""
        right = self.items[i].right
        found = [rating.logprob for rating in answer.ratings]
        others = [logprob for place, logprob in enumerate(found) if place != right]
        return Score(float(found[right] > max(others)))


def pair_of(where: str, row: Mapping[str, Any]) -> MultipleChoice:
    """A minimal pair as BLiMP has them; the few whose sentences are the same are never right.

    Raises:
        TaskError: it has no two sentences.
    """
    good, bad = row.get("sentence_good"), row.get("sentence_bad")
    if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
        raise TaskError(f"{where} needs two texts, sentence_good and sentence_bad")
    return MultipleChoice("", (good, bad), 0)


def choice_of(where: str, row: Mapping[str, Any]) -> MultipleChoice:
    """A question with `choices` and the number of the right one, or its text, as `answer`.

    Raises:
        TaskError: it is none.
    """
    question, options, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not isinstance(options, list) or len(options) < 2:
        raise TaskError(f"{where} needs a question and at least two choices")
    if not all(isinstance(option, str) and option for option in options):
        raise TaskError(f"{where}: choices must be texts that are not empty")
    if len(set(options)) < len(options):
        raise TaskError(f"{where}: two choices are the same")
    right = options.index(answer) if answer in options else answer
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise TaskError(f"{where}: answer must be one of the choices, or its number from 0")
    return MultipleChoice(question, tuple(f" {option}" for option in options), right)
