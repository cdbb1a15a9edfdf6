"""What of a JSON schema answers are held to, and what xgrammar would pass over without a word.

Contract: `check` lets through a schema of which xgrammar keeps every keyword; else it names the
first keyword that would not be kept, where that is (a JSON pointer) and what to write instead. What
is allowed is listed, each keyword as tried with xgrammar 0.2.8, so that unknown ones are refused.

Stricter than the schema: properties and items that are not named are left out, properties come in
the order of the schema, a pattern is of the whole string, and a string with a pattern or a length
has no escapes. Not covered: ranges without a value and the like, which xgrammar refuses itself;
days that a month does not have (`date`, `date-time`); U+2028 and U+2029, which a pattern's dot is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, NoReturn

from greenllm.core import InvalidRequestError

# vLLM itself takes 64 levels of JSON, and a property is two. xgrammar ends the process (no stack is
# left) on references or groups one within the other by the thousand, in whatever order they stand.
DEEPEST, MOST_SCHEMAS, LONGEST_PATTERN = 32, 500, 1000
FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "uuid", "uri", "uri-reference"}
    | {"uri-template"}
)

_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$comment"}
)
_AT_ROOT = frozenset({"$id", "$defs", "definitions"})
# xgrammar reads the first of these, and nothing beside it.
_FORMS = ("$ref", "const", "enum", "anyOf", "allOf")
_OWNERS = {
    "object": ("properties", "required", "additionalProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_OWNER = {keyword: owner for owner, keywords in _OWNERS.items() for keyword in keywords}
_INSTEAD = {
    "oneOf": "use anyOf",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$anchor": "put the schema into $defs at the root",
    "nullable": 'use "type": ["...", "null"] or anyOf',
    "multipleOf": "use enum",
    "minProperties": "use required",
    "patternProperties": "use properties",
    "propertyNames": "use properties",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "additionalItems": "use prefixItems and items",
}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "integer": lambda value: _is_number(value) and value % 1 == 0,
    "number": lambda value: _is_number(value),
}

# Quotes, backslashes and control characters of a pattern would stand in the answer unescaped.
_ESCAPE = r"\\[dDwWs\-!#-/:-@\[\]^_`{-~ ]"
_LONE = r"(?:[^\\\"\x00-\x1f\x7f\]]|" + _ESCAPE + ")"
_OTHER = r"(?:[^\\\x00-\x1f\x7f\]]|\\[dDwW\-!-/:-@\[-`{-~ ])"
_CLASS = rf"\[(?:(?!\^){_LONE}+|\^{_OTHER}+)\]"
_ATOM = r"[^\\\"\x00-\x1f\x7f\^$|?*+()\[\]{}]|" + _ESCAPE + "|" + _CLASS + r"|\)"
_TIMES = r"(?:(?:[*+?]|\{\d+(?:,\d*)?\})\??)?"
_PATTERN = re.compile(rf"\^?(?:(?:{_ATOM}){_TIMES}|\((?:\?:)?(?!\?)|\|)*\$?")
_RANGE_OF_CLASSES = re.compile(r"\\[dDwWs]-[^\]]|(?<!^\[)(?<!^\[\^)-\\[dDwWs]")

# Fifteen digits, which a double tells apart.
_LARGEST, _DIGITS, _NARROWEST = 1e9, 6, 1e-4


class _At(NamedTuple):
    """A schema within the schema: where it is, and how many are around it."""

    schema: Any
    path: str
    depth: int

    def below(self, schema: Any, *names: str | int) -> _At:
        parts = (str(name).replace("~", "~0").replace("/", "~1") for name in names)
        return _At(schema, "/".join((self.path, *parts)), self.depth + 1)

    def refuse(self, keyword: str, instead: str) -> NoReturn:
        raise InvalidRequestError(
            f'response_format: "{keyword:.80}" at {self.path:.300} would not be kept: {instead}',
            "response_format",
        )


def check(schema: object) -> None:
    """Refuse a schema that answers would not be held to in all it says.

    Raises:
        InvalidRequestError: it names the keyword, where it is and what to do.
    """
    named = _named(schema)
    pending = [_At(schema, "#", 1)]
    count = 0
    while pending:
        count += 1
        at = pending.pop()
        _check_size(at, count)
        if at.schema is True:
            continue
        _check_shape(at)
        _check_keywords(at)
        _check_types(at)
        _check_values(at, named)
        pending += reversed(list(_children(at)))
    _check_circles(named)


def _check_size(at: _At, count: int) -> None:
    for number, most, where in (
        (at.depth, DEEPEST, "within each other"),
        (count, MOST_SCHEMAS, "in all"),
    ):
        if number > most:
            raise InvalidRequestError(
                f"response_format: more than {most} schemas {where} at {at.path:.300}; use fewer",
                "response_format",
            )


def _check_shape(at: _At) -> None:
    if not isinstance(at.schema, dict):
        what = "false allows nothing; leave it out" if at.schema is False else "this is no schema"
        raise InvalidRequestError(f"response_format: at {at.path:.300}: {what}", "response_format")


def _check_keywords(at: _At) -> None:
    """Those that are known, where they may be, and beside what."""
    form = next((form for form in _FORMS if form in at.schema), None)
    for keyword in _said(at):
        if keyword in _AT_ROOT:
            at.refuse(keyword, "put it at the root")
        if keyword not in _OWNER and keyword not in _FORMS and keyword != "type":
            at.refuse(keyword, _INSTEAD.get(keyword, "leave it out"))
        beside_value = keyword == "type" and form in ("const", "enum")
        if form not in (None, keyword) and not beside_value:
            where = "its schemas" if form in ("anyOf", "allOf") else "what is referred to"
            at.refuse(keyword, f"not beside {form}; " + _move(form, where))


def _move(form: str | None, where: str) -> str:
    return "leave it out" if form in ("const", "enum") else f"put it into {where}"


def _said(at: _At) -> Iterator[str]:
    """Keywords that say something about answers, or stand where they may not."""
    for keyword in at.schema:
        if keyword not in _NOTES and not (keyword in _AT_ROOT and at.path == "#"):
            yield keyword


def _check_types(at: _At) -> None:
    """Every keyword beside the type that it is about."""
    types = _types_of(at)
    for keyword in at.schema:
        owner = _OWNER.get(keyword)
        if owner is not None and owner not in types:
            kind = "integer" if keyword in _OWNERS["number"] else owner
            more = ' or "number"' if kind == "integer" else ""
            at.refuse(keyword, f'add "type": "{kind}"{more}, or leave it out')


def _types_of(at: _At) -> set[str]:
    """What `type` says; `number` is among it where `integer` is."""
    if "type" not in at.schema:
        return set()
    given = at.schema["type"]
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(name, str) and name in _TYPES for name in types):
        at.refuse("type", f"use one or more of {', '.join(_TYPES)}")
    return {*types} | ({"number"} if "integer" in types else set())


def _check_values(at: _At, named: Mapping[str, Any]) -> None:
    for keyword, value in at.schema.items():
        problem = None
        if keyword == "$ref":
            problem = _reference_problem(value, named)
        elif keyword in _PROBLEMS:
            problem = _PROBLEMS[keyword](value, at.schema)
        if problem is not None:
            at.refuse(keyword, problem)


def _reference_problem(value: Any, named: Mapping[str, Any]) -> str | None:
    if isinstance(value, str) and value in named:
        return None
    return f"{value!r:.80} is none of #, #/$defs/NAME and #/definitions/NAME"


def _enum_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    if not isinstance(value, list) or not value:
        return "use a list of values"
    return next(filter(None, (_const_problem(one, schema) for one in value)), None)


def _const_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Of a value; `type` is passed over beside it."""
    if "type" in schema:
        given = schema["type"]
        types = given if isinstance(given, list) else [given]
        if not any(_TYPES[name](value) for name in types):
            return "a value is not of the type beside it"
    return None if _is_exact(value) else "integers of up to 64 bits only"


def _is_exact(value: Any) -> bool:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            return False
        if isinstance(one, list | dict):
            pending += one.values() if isinstance(one, dict) else one
    return True


def _list_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    return None if isinstance(value, list) and value else "use a list of schemas"


def _all_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    one = isinstance(value, list) and len(value) == 1
    return None if one else "one schema at most; write them as one"


def _count_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if fine else "use an integer that is not negative"


def _pattern_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    if "format" in schema:
        return "not beside format; leave one out"
    if not isinstance(value, str) or len(value) > LONGEST_PATTERN:
        return f"use a pattern of up to {LONGEST_PATTERN} characters"
    fine = _PATTERN.fullmatch(value)
    if not fine or any(map(_RANGE_OF_CLASSES.search, re.findall(_CLASS, value))):
        return (
            "use characters, classes, groups, alternatives and repetition only, ^ and $ at the ends"
            ' only, and no " or \\ to be matched, no other escapes, and not \\S or [^\\s]'
        )
    return _length_problem(schema)


def _format_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    if not isinstance(value, str) or value not in FORMATS:
        return f"use pattern, or one of {', '.join(sorted(FORMATS))}"
    return _length_problem(schema)


def _length_problem(schema: Mapping[str, Any]) -> str | None:
    beside = next((name for name in ("minLength", "maxLength") if name in schema), None)
    return None if beside is None else f"not beside {beside}; leave that out, or say it in pattern"


def _properties_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    return None if isinstance(value, dict) else "use an object of schemas"


def _required_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """A name that no property has is passed over."""
    if not isinstance(value, list):
        return "use a list of names"
    properties = schema.get("properties", {})
    known = properties if isinstance(properties, dict) else {}
    missing = [name for name in value if not isinstance(name, str) or name not in known]
    return f"add {missing[0]!r:.80} to properties" if missing else None


def _more_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """A further property may be a named one again, written with an escape."""
    closed = value is False or not schema.get("properties")
    return None if closed else "use false beside properties"


def _most_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Beside many properties xgrammar takes minutes."""
    if schema.get("properties"):
        return "not beside properties; leave it out"
    return _count_problem(value, schema)


def _bound_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    if not _is_number(value):
        return "use a number"
    if "number" not in schema.get("type", ()):
        return None
    if abs(value) > _LARGEST or round(value, _DIGITS) != value:
        return f"of a number, use up to {_LARGEST:.0f} with up to {_DIGITS} decimals"
    lowest = [schema[name] for name in ("minimum", "exclusiveMinimum") if name in schema]
    highest = [schema[name] for name in ("maximum", "exclusiveMaximum") if name in schema]
    if not all(map(_is_number, lowest + highest)):
        return "use a number"
    narrow = lowest and highest and min(highest) - max(lowest) < _NARROWEST
    return f"leave {_NARROWEST} between the bounds, or use enum" if narrow else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PROBLEMS: dict[str, Callable[[Any, Mapping[str, Any]], str | None]] = {
    "enum": _enum_problem,
    "const": _const_problem,
    "anyOf": _list_problem,
    "allOf": _all_problem,
    "pattern": _pattern_problem,
    "format": _format_problem,
    "properties": _properties_problem,
    "$defs": _properties_problem,
    "definitions": _properties_problem,
    "required": _required_problem,
    "additionalProperties": _more_problem,
    "maxProperties": _most_problem,
    "prefixItems": _list_problem,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _count_problem),
    **dict.fromkeys(_OWNERS["number"], _bound_problem),
}


def _children(at: _At) -> Iterator[_At]:
    for keyword in ("$defs", "definitions", "properties"):
        for name, schema in at.schema.get(keyword, {}).items():
            yield at.below(schema, keyword, name)
    for keyword in ("anyOf", "allOf", "prefixItems"):
        for i, schema in enumerate(at.schema.get(keyword, [])):
            yield at.below(schema, keyword, i)
    for keyword in ("items", "additionalProperties"):
        if at.schema.get(keyword, False) is not False:
            yield at.below(at.schema[keyword], keyword)


def _named(schema: Any) -> dict[str, Any]:
    """What `$ref` may refer to; xgrammar reads no escapes in it."""
    named = {"#": schema}
    for keyword in ("$defs", "definitions"):
        found = schema.get(keyword) if isinstance(schema, dict) else None
        for name, one in found.items() if isinstance(found, dict) else ():
            if name and not set(name) & set("/~%"):
                named[f"#/{keyword}/{name}"] = one
    return named


def _check_circles(named: Mapping[str, Any]) -> None:
    """Refuse references that come back to themselves with nothing said on the way."""
    try:
        TopologicalSorter({name: set(_same(schema)) for name, schema in named.items()}).prepare()
    except CycleError as error:
        _At(None, error.args[1][0], 1).refuse("$ref", "it comes back to itself with nothing said")


def _same(schema: Any) -> Iterator[str]:
    """References that an instance of `schema` may itself have to be an instance of."""
    pending = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield from (one[name] for name in ("$ref",) if name in one)
            pending += [*one.get("anyOf", ()), *one.get("allOf", ())]
