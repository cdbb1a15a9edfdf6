"""Types of the fields of HTTP bodies, each with its bound from `limits`.

Contract: validation of a list ends with the first item that is wrong, and a map is counted before
its entries are looked at, so that what a wrong body costs does not grow with it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticKnownError

from serving.limits import (
    MOST_BIASES,
    MOST_CHARACTERS,
    MOST_KEYS,
    MOST_LABELS,
    MOST_NAME_CHARACTERS,
    MOST_PATH_CHARACTERS,
    MOST_RECIPE_OPTIONS,
    MOST_SCHEMA_CHARACTERS,
    MOST_STOP_CHARACTERS,
    MOST_TOKEN_IDS,
)


def items(most: int, least: int | None = None) -> Any:
    """Bounds the items of a list; the first wrong one ends the validation."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def entries(most: int) -> BeforeValidator:
    """Bounds the entries of a map before they are validated: a map does not fail fast."""
    return BeforeValidator(lambda value: refuse_many(value, most))


def refuse_many(value: Any, most: int) -> Any:
    """The value, unless it is an object with more entries than that."""
    if isinstance(value, dict) and len(value) > most:
        facts = {"field_type": "Object", "max_length": most, "actual_length": len(value)}
        raise PydanticKnownError("too_long", facts)
    return value


def _few_characters(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > MOST_SCHEMA_CHARACTERS:
        raise PydanticKnownError("string_too_long", {"max_length": MOST_SCHEMA_CHARACTERS})
    return schema


Positive = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Field(max_length=MOST_NAME_CHARACTERS)]
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Stop = Annotated[str, Field(max_length=MOST_STOP_CHARACTERS)]
TokenIds = Annotated[list[int], items(MOST_TOKEN_IDS)]
Nothing = Annotated[list[Any], items(0)]
User = Annotated[str, Field(max_length=256)]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MOST_LABELS),
    entries(MOST_LABELS),
]
Biases = Annotated[dict[Name, float], Field(max_length=MOST_BIASES), entries(MOST_BIASES)]
Path = Annotated[str, Field(min_length=1, max_length=MOST_PATH_CHARACTERS)]
Value = Annotated[str, Field(max_length=MOST_PATH_CHARACTERS)]
Schema = Annotated[
    dict[str, Any],
    Field(max_length=MOST_KEYS),
    entries(MOST_KEYS),
    AfterValidator(_few_characters),
]
RecipeOptions = Annotated[
    dict[Name, Value | int | float | bool | Annotated[list[Value], items(MOST_KEYS)]],
    Field(max_length=MOST_RECIPE_OPTIONS),
    entries(MOST_RECIPE_OPTIONS),
]
