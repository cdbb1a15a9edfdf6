"""Parts of a JSON document by name, each of the kind that is wanted.

Contract: pure. What is missing or null is None, and so is a number that is not finite; another
kind of value is a `ConfigError` that names it. Not covered: lists of objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from greenllm.config import ConfigError

Document = Mapping[str, Any]


def part(found: Document, name: str) -> Document:
    """An object that must be there."""
    value = found.get(name)
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object")
    return value


def text(found: Document, name: str) -> str | None:
    """A text."""
    value = found.get(name)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(name, value, "a text")


def needed(found: Document, name: str) -> str:
    """A text that must be there."""
    value = text(found, name)
    if value is None:
        raise _wrong(name, value, "a text")
    return value


def number(found: Document, name: str) -> float | None:
    """A number; None also where it is not finite."""
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    return value if math.isfinite(value) else None


def count(found: Document, name: str) -> int | None:
    """A whole number."""
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "a whole number")
    return value


def flag(found: Document, name: str) -> bool | None:
    """Yes or no."""
    value = found.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(name, value, "true or false")


def texts(found: Document, name: str) -> list[str]:
    """A list of texts; empty where there is none."""
    value = found.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, value, "a list of texts")
    return value


def versions(found: Document) -> dict[str, str] | None:
    """The versions of packages."""
    if found.get("versions") is None:
        return None
    by_name = part(found, "versions")
    return {name: needed(by_name, name) for name in by_name}


def total(values: Sequence[float | None]) -> float | None:
    """The sum; unknown where one is, or where there is nothing to add."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def total_count(values: Sequence[int | None]) -> int | None:
    """The sum of whole numbers; unknown where one is, or where there is nothing to add."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def require_schema(found: Document, wanted: int) -> None:
    """Refuse a version that nobody here can read."""
    if found.get("schema") != wanted:
        raise ConfigError(
            f"its schema is {found.get('schema')!r}, and this version of greenllm reads {wanted}:"
            " upgrade greenllm, or make the report again"
        )


def _wrong(name: str, value: Any, wanted: str) -> ConfigError:
    what = "missing" if value is None else repr(value)[:40]
    return ConfigError(f"its {name!r} is {what}, not {wanted}")
