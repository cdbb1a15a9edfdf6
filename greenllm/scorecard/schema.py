"""JSON Schema (draft 2020-12) of frozen dataclasses, and whether a value conforms.

Contract: pure. Every field is required and nothing else is allowed; what may be None may be null;
descriptions and minima come from the fields' metadata. `faults` knows exactly the keywords that
`schema_of` writes, and refuses numbers that JSON has not (NaN, infinities).

Source: json-schema.org/draft/2020-12.

Not covered: recursive types; keywords that no card needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from greenllm.core import GreenllmError
from greenllm.scorecard.card import VERSION, Card

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ID = f"urn:greenllm:score_card:{VERSION}"
_PLAIN: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
Schema = dict[str, Any]


def card_schema() -> Schema:
    """The published schema of the score card."""
    return {"$schema": DRAFT, "$id": ID, "title": "Green score card", **schema_of(Card)}


def schema_of(kind: type[Any]) -> Schema:
    """The schema of a dataclass; those it holds are under `$defs`.

    Raises:
        TypeError: a field's type has no schema here.
    """
    found: dict[str, Schema] = {}
    top = _object(kind, found)
    return {**top, "$defs": {name: found[name] for name in sorted(found)}}


def _object(kind: type[Any], found: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind)
    properties = {
        spec.name: _described(_of(hints[spec.name], found), spec.metadata) for spec in fields(kind)
    }
    return {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(schema: Schema, metadata: Mapping[str, Any]) -> Schema:
    least = metadata["minimum"]
    minimum = {} if least is None else {"minimum": least}
    return {"description": metadata["text"], **schema, **minimum}


def _of(hint: Any, found: dict[str, Schema]) -> Schema:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is UnionType:
        return _nullable(inner, found)
    if origin is tuple:
        return {"type": "array", "items": _of(inner[0], found)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(inner[1], found)}
    if is_dataclass(hint) and isinstance(hint, type):
        found[hint.__name__] = _object(hint, found)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"{hint} has no JSON Schema here")


def _nullable(inner: tuple[Any, ...], found: dict[str, Schema]) -> Schema:
    rest = [kind for kind in inner if kind is not NoneType]
    if len(rest) != 1 or len(inner) != 2:
        raise TypeError(f"{inner} has no JSON Schema here: one type, or that and None")
    schema = _of(rest[0], found)
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def faults(
    value: Any, schema: Schema, where: str = "card", root: Schema | None = None
) -> list[str]:
    """What does not conform, each with its place; empty where all does."""
    root = schema if root is None else root
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        tried = [faults(value, one, where, root) for one in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    return [*_value_faults(value, schema, where), *_inner_faults(value, schema, where, root)]


def _value_faults(value: Any, schema: Schema, where: str) -> Iterator[str]:
    allowed = schema.get("type", [])
    names = [allowed] if isinstance(allowed, str) else allowed
    if names and not any(_is(value, name) for name in names):
        yield f"{where} is {value!r}, not {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, not one of {schema['enum']}"
    if "minimum" in schema and _is(value, "number") and value < schema["minimum"]:
        yield f"{where} is {value!r}, below {schema['minimum']}"


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "number":
        return isinstance(value, int | float) and math.isfinite(value)
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "object": dict, "array": list, "null": NoneType,
    }  # fmt: skip
    return name in kinds and isinstance(value, kinds[name])


def _inner_faults(value: Any, schema: Schema, where: str, root: Schema) -> Iterator[str]:
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from faults(item, schema["items"], f"{where}[{i}]", root)
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        yield from (f"{where}.{n} is missing" for n in schema.get("required", ()) if n not in value)
        for name, item in value.items():
            if name in properties:
                yield from faults(item, properties[name], f"{where}.{name}", root)
            elif isinstance(others, dict):
                yield from faults(item, others, f"{where}.{name}", root)
            elif others is False:
                yield f"{where}.{name} is not known"


def card_object(card: Card) -> dict[str, Any]:
    """The card as JSON has it, checked against its schema.

    Raises:
        GreenllmError: a value is not what the schema wants.
    """
    found: dict[str, Any] = _lists(asdict(card))
    if wrong := faults(found, card_schema()):
        raise GreenllmError(
            f"no valid score card: {wrong[0]}; the report it was read from is wrong, make it again"
        )
    return found


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _lists(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return value
