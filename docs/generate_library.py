"""The library's reference: what a user of the Python package calls and reads.

Contract: the classes of `PUBLIC` with their docstrings, fields and methods, from the code as it is
imported. Everything else in the packages is internal and may change. Not covered: the command
line, which has a page of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from docstrings import arguments, attributes, prose, raises

from finetune.recipe import Recipe
from greenllm.choices import Choice
from greenllm.core import Grammar, GreenllmError, InvalidRequestError, SamplingParams
from greenllm.energy.ledger import GroupSums, Ledger, Session
from greenllm.energy.receipt import Receipt
from greenllm.generation import Generation, GenerationError, Stream
from greenllm.llm import LLM
from greenllm.options import EngineConfig
from serving.config import ServeConfig

# A class by the module to import it from, and its methods: None is every public one.
Public = tuple[str, type, tuple[str, ...] | None]
PUBLIC: dict[str, tuple[Public, ...]] = {
    "Asking a model": (
        ("greenllm", LLM, None),
        ("greenllm", SamplingParams, ()),
        ("greenllm.core", Grammar, ()),
        ("greenllm", Generation, None),
        ("greenllm.generation", Stream, ("generation", "close")),
        ("greenllm.choices", Choice, ()),
    ),
    "Receipts and the ledger": (
        ("greenllm", Receipt, None),
        ("greenllm.energy.ledger", Ledger, ("receipt", "receipts", "sums", "sessions", "close")),
        ("greenllm.energy.ledger", GroupSums, ()),
        ("greenllm.energy.ledger", Session, ()),
    ),
    "Options": (
        ("greenllm.options", EngineConfig, ()),
        ("serving.config", ServeConfig, ()),
        ("finetune.recipe", Recipe, ()),
    ),
    "Errors": (
        ("greenllm", GreenllmError, ()),
        ("greenllm.core", InvalidRequestError, ()),
        ("greenllm.generation", GenerationError, ()),
    ),
}
_INTRODUCTION = (
    "What a Python program uses. Every other name is internal and may change between versions;"
    " [the architecture](../architecture.md) is the way in for readers of the code."
)


def library_page() -> str:
    """The page."""
    parts = ["# The library", _INTRODUCTION]
    seen: set[str] = set()
    for heading, classes in PUBLIC.items():
        parts.append(f"## {heading}")
        for module, owner, methods in classes:
            parts += _class(module, owner, methods, seen)
    return "\n\n".join(parts) + "\n"


def _class(
    module: str, owner: type, methods: tuple[str, ...] | None, seen: set[str]
) -> Iterator[str]:
    yield f"### {owner.__name__}"
    yield f"```python\nfrom {module} import {owner.__name__}\n```"
    yield prose(owner)
    if given := arguments(owner):
        yield f"`{owner.__name__}{_signature(vars(owner)['__init__'])}`"
        yield "\n".join(f"- `{name}`: {text}" for name, text in given.items())
    if errors := raises(owner):
        yield f"Raises {_errors(errors)}"
    own = fields(owner) if is_dataclass(owner) else ()
    # A config class repeats the options of those that it is made of; each is listed once.
    new = [field for field in own if not (_is_option(field) and field.name in seen)]
    seen.update(field.name for field in new if _is_option(field))
    if len(new) < len(own):
        yield "It has the options above too."
    if new:
        yield _field_table(owner, new)
    described = [_method(name, item) for name, item in _methods(owner, methods)]
    if described:
        yield "\n".join(described)


def _field_table(owner: type, found: Sequence[Field[Any]]) -> str:
    meanings = attributes(owner)
    rows = ["| name | type | default | what |", "|---|---|---|---|"]
    for field in found:
        meaning = field.metadata.get("help") or meanings.get(field.name, "")
        cells = (f"`{field.name}`", f"`{_kind(field)}`", _default(field), meaning)
        rows.append(f"| {' | '.join(map(_escaped, cells))} |")
    return "\n".join(rows)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _is_option(field: Field[Any]) -> bool:
    return "help" in field.metadata


def _kind(field: Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not MISSING:
        value = field.default_factory()
        # A default that depends on the machine would make the page differ between machines.
        return f"`{value!r}`" if isinstance(value, dict | list | tuple) else ""
    return "required"


def _methods(owner: type, names: tuple[str, ...] | None) -> Iterator[tuple[str, Any]]:
    for name, item in vars(owner).items():
        is_wanted = not name.startswith("_") if names is None else name in names
        if is_wanted and (inspect.isfunction(item) or isinstance(item, property)):
            yield name, item


def _method(name: str, item: Any) -> str:
    if isinstance(item, property):
        kind = inspect.signature(item.fget).return_annotation if item.fget else ""
        return f"- `{name}: {kind}` (property): {_whole(item)}"
    return f"- `{name}{_signature(item)}`: {_whole(item)}"


def _whole(item: object) -> str:
    """A docstring in an entry of a list: its paragraphs, and the errors."""
    paragraphs = [" ".join(text.split()) for text in prose(item).split("\n\n")]
    if errors := raises(item):
        paragraphs.append(f"Raises {_errors(errors)}")
    return "\n\n  ".join(paragraphs)


def _errors(found: dict[str, str]) -> str:
    return " ".join(f"`{name}`: {text}" for name, text in found.items())


def _signature(function: Any) -> str:
    found = inspect.signature(function)
    own = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    text = str(found.replace(parameters=own))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).removesuffix(" -> None")
