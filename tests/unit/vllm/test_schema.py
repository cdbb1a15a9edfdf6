"""A schema is let through only if answers are held to every keyword of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenllm.core import InvalidRequestError
from greenllm.vllm.schema import DEEPEST, FORMATS, LONGEST_PATTERN, MOST_SCHEMAS, check

TEXT, WHOLE, REAL = {"type": "string"}, {"type": "integer"}, {"type": "number"}
LINKED = {
    "title": "A list",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "http://localhost/list",
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"$ref": "#/definitions/Value", "description": "a note"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None},
            },
            "required": ["value"],
        }
    },
    "definitions": {"Value": {"type": ["string", "integer"], "maxLength": 3, "minimum": 0}},
}
ACCEPTED: list[Any] = [
    {},
    True,
    LINKED,
    *({"type": name} for name in ("null", "boolean", "string", "array", "object", "number")),
    {"type": ["string", "null"], "enum": ["a", None]},
    {"enum": [1, "a", None, [1], {"a": 1.5}]},
    {"const": {"a": 1}},
    {"type": "integer", "const": 1.0},
    {"type": "number", "enum": [1, 2.5]},
    {"anyOf": [TEXT, WHOLE], "description": "either"},
    {"allOf": [TEXT], "default": "a"},
    {"type": "object", "properties": {"a": TEXT, "not": WHOLE}, "additionalProperties": False},
    {"type": "object", "additionalProperties": WHOLE, "maxProperties": 3},
    {"type": "object", "properties": {"child": {"$ref": "#"}}},
    {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False},
    {"type": "array", "items": True},
    {"type": "string", "minLength": 1, "maxLength": 12},
    *({"type": "string", "format": name} for name in sorted(FORMATS)),
    {"type": "integer", "minimum": -(2**60), "exclusiveMaximum": 2**60},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 0.5},
    {"type": "number", "exclusiveMinimum": -123.456789},
]
PATTERNS = (
    *("^ab$", "ab|c", "^(a|b)+$", r"^\d{2,3}\w*?$", r"^[\w.+-]+@[a-z-]{1,}$", r"\(\*\)", "", "^.$"),
    *(
        r"[^\"\\]",
        '[^"a]',
        r"^(?:ab){2}\/$",
        r"[\d\-_]",
        r"\s",
        "[ -~]",
        "^é+$",
        r"[A-z]",
        r"[\]a]",
        r"[-\w]",
        r"[^-\d]",
    ),
)
BAD_PATTERNS = (
    *("(?=a)b", "(?!a)b", "(?<=a)b", "(?<n>a)", "(?i)a", "a^b", "a$b", "^^a", "(^a)", "a**", "a++"),
    *('"', r"\"", r"\\", '["]', r"[\\]", r"\n", "\n", r"\t", r"\u0022", r"\x22", r"\b", r"\q"),
    *(r"\1", r"\p{L}", r"\S", r"[\s\S]", r"[^\s]", "[]", "[^]", "[a", "a{", "]", r"[\d-z]"),
    *(r"[a-\d]", r"\cA", r"\0", "a" * (LONGEST_PATTERN + 1)),
)
ONE: list[tuple[dict[str, Any], str, str]] = [
    ({"oneOf": [TEXT]}, "oneOf", "use anyOf"),
    ({"type": "string", "not": {"const": "a"}}, "not", "leave it out"),
    ({"if": TEXT, "then": TEXT, "else": TEXT}, "if", "leave it out"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", "leave it out"),
    ({"type": "object", "dependentSchemas": {}}, "dependentSchemas", "leave it out"),
    ({"$dynamicRef": "#"}, "$dynamicRef", r"use \$ref"),
    ({"type": "string", "nullable": True}, "nullable", "anyOf"),
    ({"type": "integer", "multipleOf": 3}, "multipleOf", "use enum"),
    ({"multipleOf": 3}, "multipleOf", "use enum"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems", "leave it out"),
    ({"type": "array", "contains": TEXT}, "contains", "leave it out"),
    ({"type": "object", "minProperties": 1}, "minProperties", "use required"),
    ({"type": "object", "patternProperties": {}}, "patternProperties", "use properties"),
    ({"type": "object", "propertyNames": TEXT}, "propertyNames", "use properties"),
    ({"type": "object", "x-mine": 1}, "x-mine", "leave it out"),
    ({"minLength": 1}, "minLength", 'add "type": "string"'),
    ({"pattern": "a"}, "pattern", 'add "type": "string"'),
    ({"format": "date"}, "format", 'add "type": "string"'),
    ({"type": "integer", "maxLength": 1}, "maxLength", 'add "type": "string"'),
    ({"minimum": 1}, "minimum", 'add "type": "integer" or "number"'),
    ({"properties": {}}, "properties", 'add "type": "object"'),
    ({"required": []}, "required", 'add "type": "object"'),
    ({"additionalProperties": False}, "additionalProperties", 'add "type": "object"'),
    ({"items": TEXT}, "items", 'add "type": "array"'),
    ({"maxItems": 1}, "maxItems", 'add "type": "array"'),
    ({"type": "nope"}, "type", "use one or more of"),
    ({"type": []}, "type", "use one or more of"),
    ({"type": [{}]}, "type", "use one or more of"),
    ({"type": "string", "enum": ["a", 1]}, "enum", "not of the type"),
    ({"type": "integer", "const": True}, "const", "not of the type"),
    ({"enum": []}, "enum", "a list of values"),
    ({"const": [2**63]}, "const", "64 bits"),
    ({"const": 1, "enum": [2]}, "enum", "not beside const"),
    ({"type": "integer", "enum": [1], "minimum": 1}, "minimum", "not beside enum; leave it out"),
    ({"anyOf": [TEXT], "type": "string"}, "type", "not beside anyOf; put it into its schemas"),
    ({"anyOf": []}, "anyOf", "a list of schemas"),
    ({"allOf": [TEXT, WHOLE]}, "allOf", "write them as one"),
    ({"allOf": [TEXT], "minLength": 1}, "minLength", "not beside allOf"),
    ({"$ref": "#", "maxLength": 1}, "maxLength", r"not beside \$ref; put it into what is"),
    ({"$ref": "http://a/b"}, "$ref", "'http://a/b' is none of"),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": TEXT}}, "$ref", "none of"),
    ({"$ref": "#/$defs/", "$defs": {"": TEXT}}, "$ref", "none of"),
    ({"$ref": ["#"]}, "$ref", "none of"),
    ({"$ref": "#"}, "$ref", "comes back to itself"),
    ({"$defs": []}, "$defs", "an object of schemas"),
    ({"type": "string", "minLength": -1}, "minLength", "not negative"),
    ({"type": "string", "minLength": True}, "minLength", "not negative"),
    ({"type": "string", "pattern": "a", "minLength": 1}, "pattern", "not beside minLength"),
    ({"type": "string", "pattern": 5}, "pattern", "a pattern of"),
    ({"type": "string", "format": "date", "maxLength": 1}, "format", "not beside maxLength"),
    ({"type": "string", "format": "date", "pattern": "a"}, "pattern", "not beside format"),
    ({"type": "string", "format": "ipv4"}, "format", "use pattern"),
    ({"type": "string", "format": []}, "format", "use pattern"),
    ({"type": "object", "properties": 5}, "properties", "an object of schemas"),
    ({"type": "object", "required": "a"}, "required", "a list of names"),
    ({"type": "object", "required": ["a"], "properties": 5}, "required", "add 'a' to"),
    ({"type": "object", "properties": {"b": TEXT}, "required": ["a"]}, "required", "add 'a' to"),
    (
        {"type": "object", "properties": {"a": TEXT}, "additionalProperties": True},
        "additionalProperties",
        "use false",
    ),
    (
        {"type": "object", "properties": {"a": TEXT}, "maxProperties": 1},
        "maxProperties",
        "not beside properties",
    ),
    ({"type": "array", "prefixItems": []}, "prefixItems", "a list of schemas"),
    ({"type": "integer", "minimum": "1"}, "minimum", "use a number"),
    ({"type": "number", "minimum": 1, "maximum": None}, "minimum", "use a number"),
    ({"type": "number", "maximum": 2e9}, "maximum", "1000000000"),
    ({"type": "number", "maximum": 0.1234567}, "maximum", "6 decimals"),
    ({"type": "number", "minimum": float("nan")}, "minimum", "6 decimals"),
    ({"type": "number", "minimum": 1, "maximum": 1}, "minimum", "or use enum"),
]


@pytest.mark.parametrize(
    "schema", [*ACCEPTED, *({"type": "string", "pattern": one} for one in PATTERNS)], ids=json.dumps
)
def test_what_is_kept_is_let_through(schema: Any) -> None:
    check(schema)


@pytest.mark.parametrize(
    ("schema", "keyword", "instead"),
    [*ONE, *(({"type": "string", "pattern": one}, "pattern", "use ") for one in BAD_PATTERNS)],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_not_kept_is_refused_with_its_name_and_what_to_do(
    schema: Any, keyword: str, instead: str
) -> None:
    with pytest.raises(InvalidRequestError, match=instead) as caught:
        check(schema)
    assert str(caught.value).startswith(f'response_format: "{keyword}" at # would not be kept: ')
    assert caught.value.param == "response_format"


BAD = {"type": "string", "not": {}}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": TEXT, "b/~": BAD}}, "#/properties/b~1~0"),
        ({"type": "object", "additionalProperties": BAD}, "#/additionalProperties"),
        ({"type": "array", "items": {"type": "array", "items": BAD}}, "#/items/items"),
        ({"type": "array", "prefixItems": [TEXT, BAD]}, "#/prefixItems/1"),
        ({"anyOf": [TEXT, {"allOf": [BAD]}]}, "#/anyOf/1/allOf/0"),
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT, "b": BAD}}, "#/$defs/b"),
        ({"definitions": {"a": {"anyOf": [BAD]}}, "type": "string"}, "#/definitions/a/anyOf/0"),
    ],
)
def test_schemas_within_are_read(schema: Any, path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(schema)
    assert f'"not" at {path} would' in str(caught.value)


def test_the_first_of_many_is_named() -> None:
    """In the order of the schema, what is around before what is within."""
    schema = {"type": "object", "properties": {"a": {"items": BAD}, "b": {"oneOf": []}}}
    with pytest.raises(InvalidRequestError, match='"items" at #/properties/a'):
        check(schema)
    with pytest.raises(InvalidRequestError, match='"not" at # '):
        check(schema | {"not": {}})


@pytest.mark.parametrize("keyword", ["$defs", "definitions", "$id"])
def test_names_are_given_at_the_root(keyword: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"at #/items .* at the root"):
        check({"type": "array", "items": {"type": "string", keyword: {}}})


@pytest.mark.parametrize("value", [5, None, [], "a"])
def test_what_is_no_schema_is_refused(value: Any) -> None:
    for schema, path in ((value, "#"), ({"type": "array", "items": value}, "#/items")):
        with pytest.raises(InvalidRequestError, match=f"at {path}: this is no schema"):
            check(schema)
    with pytest.raises(InvalidRequestError, match="at #/properties/a: false allows nothing"):
        check({"type": "object", "properties": {"a": False}})


def nested(count: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(count - 1):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize("count", [DEEPEST + 1, 50_000])
def test_schemas_end_somewhere(count: int) -> None:
    check(nested(DEEPEST))
    deep = nested(count)
    try:
        with pytest.raises(InvalidRequestError, match=f"more than {DEEPEST} schemas within each"):
            check(deep)
    finally:
        while "items" in deep:  # or taking it apart would need as deep a stack
            deep = deep.pop("items")


def test_schemas_are_counted() -> None:
    """References one after the other by the thousand end the process in xgrammar."""
    chain: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(MOST_SCHEMAS)}
    chain[f"a{MOST_SCHEMAS}"] = TEXT
    with pytest.raises(InvalidRequestError, match=f"more than {MOST_SCHEMAS} schemas in all"):
        check({"$ref": "#/$defs/a0", "$defs": chain})
    check({"anyOf": [TEXT] * (MOST_SCHEMAS - 1)})


def test_references_come_back_by_way_of_something() -> None:
    circle = {"$defs": {"a": {"anyOf": [TEXT, {"$ref": "#/$defs/b"}]}, "b": {"allOf": [{}]}}}
    check({"$ref": "#/$defs/a", **circle})
    circle["$defs"]["b"] = {"allOf": [{"$ref": "#/$defs/a"}]}
    with pytest.raises(InvalidRequestError, match=r'"\$ref" at #/\$defs/[ab] would'):
        check({"$ref": "#/$defs/a", **circle})
    circle["$defs"]["b"] = {"type": "array", "items": {"$ref": "#/$defs/a"}}
    check({"$ref": "#/$defs/a", **circle})
