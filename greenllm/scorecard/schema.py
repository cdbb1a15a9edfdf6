"""The score card's JSON Schema (draft 2020-12), and whether values conform, by pydantic.

Contract: every field is required and nothing else is allowed; what may be None may be null;
descriptions and limits come from the fields' metadata. Numbers that JSON does not have (NaN,
infinities) are refused. pydantic is imported at the first call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from greenllm.config import ConfigError
from greenllm.scorecard.card import VERSION, Card

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ID = f"urn:greenllm:score_card:{VERSION}"


def card_schema() -> dict[str, Any]:
    """The published schema of the score card."""
    from pydantic.json_schema import GenerateJsonSchema

    class Untitled(GenerateJsonSchema):
        """Without a title at every field, which would only repeat its name."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    found = _adapter().json_schema(schema_generator=Untitled)
    return {"$schema": DRAFT, "$id": ID, **found, "title": "Green score card"}


def card_from(values: Mapping[str, Any]) -> Card:
    """The card with these values, which are named as in the schema.

    Raises:
        ConfigError: a value is missing, or is not what the schema wants.
    """
    text = json.dumps(values)
    return _checked(lambda: _adapter().validate_json(text))


def card_object(card: Card) -> dict[str, Any]:
    """The card as JSON has it, checked against its schema.

    Raises:
        ConfigError: a value is not what the schema wants.
    """
    checked = _checked(lambda: _adapter().validate_python(card))
    found: dict[str, Any] = _adapter().dump_python(checked, mode="json")
    return found


@cache
def _adapter() -> TypeAdapter[Card]:
    from pydantic import TypeAdapter

    return TypeAdapter(Card)


def _checked(validate: Callable[[], Card]) -> Card:
    """The valid card, or one sentence about its first fault."""
    from pydantic import ValidationError

    try:
        return validate()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("card", *first["loc"])))
        raise ConfigError(
            f"no valid score card: {where} is {first['input']!r:.40}: {first['msg']};"
            " the report it was read from is wrong, make it again"
        ) from error
