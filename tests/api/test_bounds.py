"""Every list, text and map of every body has a bound, and what is past it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from serving.app import create_app
from serving.config import HttpOptions
from serving.limits import MOST_CHARACTERS, MOST_KEYS, MOST_MESSAGES, MOST_SCHEMA_CHARACTERS
from serving.state import ServerState
from tests.api.shapes import CHAT, body_schema, resolved

if TYPE_CHECKING:
    from tests.api.conftest import App


def no_state(_: object) -> ServerState:
    raise NotImplementedError


DOCUMENT = create_app(no_state, HttpOptions()).openapi()
JSON_BODIES = [
    path
    for path, item in DOCUMENT["paths"].items()
    if "application/json" in item.get("post", {}).get("requestBody", {}).get("content", {})
]


class Case(NamedTuple):
    """A value that is past one bound: where it is, and what the bound is."""

    place: str
    bound: int
    value: Any


def cases(schema: Any) -> Iterator[Case]:
    """One for every bound of a schema; a KeyError is a bound that is missing."""
    schema = resolved(DOCUMENT, schema)
    kind = schema.get("type")
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from cases(one)
    if kind == "string" and not {"const", "enum"} & schema.keys():
        yield Case("", schema["maxLength"], "a" * (schema["maxLength"] + 1))
    elif kind == "array":
        yield Case("", schema["maxItems"], [sample(schema["items"])] * (schema["maxItems"] + 1))
        yield from (Case(f"0.{c.place}", c.bound, [c.value]) for c in cases(schema["items"]))
    elif kind == "object" and "properties" in schema:
        yield from of_object(schema)
    elif kind == "object":
        yield from of_map(schema)


def of_object(schema: Any) -> Iterator[Case]:
    assert schema["additionalProperties"] is False
    rest = sample(schema)
    yield Case("", MOST_KEYS, {**rest, **{f"key{i}": 0 for i in range(MOST_KEYS + 1)}})
    for name, field in schema["properties"].items():
        for place, bound, value in cases(field):
            yield Case(f"{name}.{place}", bound, {**rest, name: value})


def of_map(schema: Any) -> Iterator[Case]:
    most, values = schema["maxProperties"], schema["additionalProperties"]
    one = sample(values)
    yield Case("", most, {str(i): one for i in range(most + 1)})
    if values is not True:
        longest = schema["propertyNames"]["maxLength"]
        yield Case("", longest, {"a" * (longest + 1): one})
        yield from (Case(f"a.{place}", b, {"a": value}) for place, b, value in cases(values))


def sample(schema: Any) -> Any:
    """A small value that a schema takes."""
    if schema in (True, {}):
        return 0
    schema = resolved(DOCUMENT, schema)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return sample(schema[several][0])
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema["type"] == "object":
        wanted = schema.get("required", ())
        return {name: sample(schema["properties"][name]) for name in wanted}
    if schema["type"] == "array":
        return [sample(schema["items"])] * schema.get("minItems", 0)
    return {"string": "a", "integer": 1, "number": 1.0, "boolean": True, "null": None}[
        schema["type"]
    ]


ALL = [(path, case) for path in JSON_BODIES for case in cases(body_schema(DOCUMENT, path))]


def test_there_are_bodies_with_bounds() -> None:
    assert len(JSON_BODIES) == 7
    assert len(ALL) > 80


@pytest.mark.parametrize(
    ("path", "case"), ALL, ids=[f"{path}:{case.place}{case.bound}" for path, case in ALL]
)
def test_what_is_past_a_bound_is_refused_by_name(server: App, path: str, case: Case) -> None:
    answer = server.http.post(path, json=case.value)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    if error["code"] != "unsupported_parameter":
        assert str(case.bound) in error["message"]
    assert (error["param"] or "").startswith(case.place.split(".")[0])
    assert len(error["message"]) < 500


def test_a_schema_of_an_answer_has_a_bound(server: App) -> None:
    schema = {"enum": ["a" * MOST_SCHEMA_CHARACTERS]}
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = server.http.post(CHAT, json=server.chat(response_format=asked))
    assert str(MOST_SCHEMA_CHARACTERS) in answer.json()["error"]["message"]


def test_messages_have_a_bound_together(server: App) -> None:
    text = "a " * (MOST_CHARACTERS // 4)
    messages = [{"role": "user", "content": text}] * 3
    assert len(messages) < MOST_MESSAGES
    for path, body in ((CHAT, {"model": "bundled"}), ("/tokenize", {})):
        content = json.dumps({**body, "messages": messages})
        headers = {"Content-Type": "application/json"}
        answer = server.http.post(path, content=content, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"
        assert str(MOST_CHARACTERS) in answer.json()["error"]["message"]
