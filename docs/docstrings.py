"""Reads docstrings in Google's style, for the reference pages.

Not covered: what `Returns:` says.
"""

from __future__ import annotations

import inspect
import re

_SECTIONS = re.compile(r"^(?:Attributes|Args|Returns|Raises|Yields):$", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def prose(owner: object) -> str:
    """The paragraphs of a docstring before its first section."""
    return _SECTIONS.split(inspect.getdoc(owner) or "", maxsplit=1)[0].strip()


def first(owner: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(owner) or "").partition("\n\n")[0].split())


def attributes(owner: object) -> dict[str, str]:
    """What the section `Attributes:` says of each name."""
    return _entries(owner, "Attributes")


def arguments(owner: object) -> dict[str, str]:
    """What the section `Args:` says of each name."""
    return _entries(owner, "Args")


def raises(owner: object) -> dict[str, str]:
    """What the section `Raises:` says of each error."""
    return _entries(owner, "Raises")


def _entries(owner: object, heading: str) -> dict[str, str]:
    _, found, section = (inspect.getdoc(owner) or "").partition(f"\n{heading}:\n")
    if not found:
        return {}
    text = inspect.cleandoc(_SECTIONS.split(section, maxsplit=1)[0])
    _, *parts = _ENTRY.split(text)
    return {
        name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)
    }
