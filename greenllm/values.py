"""Kinds of values that come from outside: what they have to be, in words, and how they are kept.

Contract: what is kept is of Python's own types and a copy, so that nobody changes it later and
arithmetic on it raises nothing. A number is one that float32 holds too: there, in which logits are
computed, it becomes neither infinite nor 0. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
SHOWN_CHARACTERS = 80


class Kind(NamedTuple):
    """What values of a type have to be, as a check and in words, and what is kept of one."""

    holds: Callable[[Any], bool]
    words: str
    keep: Callable[[Any], Any]


def is_a(kind: type[Any]) -> Callable[[Any], bool]:
    """Python counts True as a number; nobody who gives it means one."""
    return lambda value: isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    if not is_a(Real)(value):
        return False
    return bool(value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def all_hold(values: Any) -> bool:
        is_many = isinstance(values, Collection) and not isinstance(values, str | bytes)
        return is_many and all(map(holds, values))

    return all_hold


def _numbers_by_id(value: Any) -> bool:
    is_mapping = isinstance(value, Mapping)
    return is_mapping and _all(is_a(Integral))(value) and all(map(_is_number, value.values()))


# By the type that a field is declared with.
KINDS: Mapping[str, Kind] = {
    "bool": Kind(is_a(bool), "true or false", bool),
    "float": Kind(_is_number, "a number within float32's range", float),
    "int": Kind(is_a(Integral), "a whole number", int),
    "Collection[str]": Kind(_all(is_a(str)), "a tuple or list of texts", tuple),
    "Collection[int]": Kind(
        _all(is_a(Integral)), "a tuple or list of token ids", lambda ids: frozenset(map(int, ids))
    ),
    "Mapping[int, float]": Kind(
        _numbers_by_id,
        "numbers within float32's range by token ids",
        lambda numbers: {int(key): float(value) for key, value in numbers.items()},
    ),
}
