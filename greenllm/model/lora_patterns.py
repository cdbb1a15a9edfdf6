r"""PEFT's patterns: values for the modules whose path ends as a key says; the first key counts.

PEFT takes a key for a regular expression. Python searches one with its lock held, and some of them
for ever: so names are looked up, and of expressions only those are taken whose search is short for
any path: characters, `.`, `\.`, `\d`, and one `*` or `+` in all. Whoever needs another can name
the modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
LONGEST_KEY = 256
MOST_EXPRESSIONS = 64
_NAME = re.compile(r"\^?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_EXPRESSION = re.compile(r"\^?(?:(?:[A-Za-z0-9_.-]|\\[.d])[*+]?)+\$?")


def is_safe(key: str) -> bool:
    """Whether a key is a name, or an expression that is searched in no time."""
    return (
        len(key) <= LONGEST_KEY
        and _EXPRESSION.fullmatch(key) is not None
        and key.count("*") + key.count("+") <= 1
    )


def is_name(key: str) -> bool:
    """Whether a key is the end of a path, or with `^` a whole one."""
    return _NAME.fullmatch(key) is not None


@dataclass(frozen=True, slots=True)
class Patterns(Generic[T]):
    """See the module; each value stands with the place of its key."""

    names: Mapping[str, tuple[int, T]]
    expressions: tuple[tuple[re.Pattern[str], int, T], ...]

    def of(self, path: str, default: T) -> T:
        """The value for a module, by the first key that fits."""
        found = [self.names[end] for end in _ends(path) if end in self.names]
        found += [(at, value) for key, at, value in self.expressions if key.match(path)]
        return min(found, key=lambda one: one[0])[1] if found else default


def patterns(values: Mapping[str, T]) -> Patterns[T]:
    """Of keys that are all safe; at most `MOST_EXPRESSIONS` of them may be no names."""
    placed = [(key, at, value) for at, (key, value) in enumerate(values.items())]
    return Patterns(
        {key: (at, value) for key, at, value in placed if is_name(key)},
        tuple(
            (re.compile(rf"(?:.*\.)?(?:{key})$"), at, value)
            for key, at, value in placed
            if not is_name(key)
        ),
    )


def _ends(path: str) -> Iterator[str]:
    """A path's ends after its dots, itself included, and itself as a whole."""
    yield "^" + path
    yield path
    for place, character in enumerate(path):
        if character == ".":
            yield path[place + 1 :]
