"""The published schema is that of the values, and what it refuses is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.scorecard.card import VERSION
from greenllm.scorecard.reading import card_of
from greenllm.scorecard.schema import card_from, card_object, card_schema
from tests.unit.scorecard.samples import compressed, evaluated, finetuned

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "docs" / "reference" / "score_card.schema.json"


VALIDATOR = Draft202012Validator(json.loads(COMMITTED.read_text(encoding="utf-8")))


def test_the_committed_file_is_the_schema_of_the_values() -> None:
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == card_schema()
    assert card_schema()["$id"] == f"urn:greenllm:score_card:{VERSION}"


def test_every_reference_of_the_schema_leads_somewhere_and_nothing_else_is_allowed() -> None:
    schema = card_schema()
    text = json.dumps(schema)
    for name in schema["$defs"]:
        assert f'"#/$defs/{name}"' in text
    for one in (schema, *schema["$defs"].values()):
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])
        assert all(found["description"] for found in one["properties"].values())
    assert text.count('"$ref"') >= len(schema["$defs"])


@pytest.mark.parametrize(
    "document",
    [finetuned(), evaluated(), compressed()],
    ids=["finetune", "evaluation", "compression"],
)
def test_cards_of_all_kinds_conform(document: dict[str, Any]) -> None:
    card = card_of(document)
    found = card_object(card)
    VALIDATOR.validate(found)
    assert card_from(json.loads(json.dumps(found, allow_nan=False))) == card


def drop(found: dict[str, Any]) -> None:
    del found["energy"]["total_j"]


def add(found: dict[str, Any]) -> None:
    found["carbon"]["stars"] = 5


def below(found: dict[str, Any]) -> None:
    found["energy"]["parts"][0]["energy_j"] = -1.0


def not_finite(found: dict[str, Any]) -> None:
    found["power_w"] = math.inf


def not_a_number(found: dict[str, Any]) -> None:
    found["quality"][0]["value"] = "0.5"


def not_whole(found: dict[str, Any]) -> None:
    found["model"]["parameters"] = 1.5


def yes(found: dict[str, Any]) -> None:
    found["running_time_s"] = True


def other_kind(found: dict[str, Any]) -> None:
    found["identity"]["what"] = "guess"


def other_version(found: dict[str, Any]) -> None:
    found["version"] = "0.9"


def not_null(found: dict[str, Any]) -> None:
    found["identity"]["model"] = None


def no_text(found: dict[str, Any]) -> None:
    found["identity"]["versions"]["greenllm"] = 1


def inside_what_may_be_null(found: dict[str, Any]) -> None:
    found["quality"][0]["before"]["low"] = "none"


@pytest.mark.parametrize(
    "spoil",
    [drop, add, below, not_finite, not_a_number, not_whole, yes, other_kind, other_version,
     not_null, no_text, inside_what_may_be_null],
)  # fmt: skip
def test_what_does_not_conform_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    found = copy.deepcopy(card_object(card_of(finetuned())))
    spoil(found)
    with pytest.raises(ConfigError, match="no valid score card: card"):
        card_from(found)
    # JSON has no infinities, and so its schema says nothing of them.
    assert VALIDATOR.is_valid(found) == (spoil is not_finite)


def test_a_card_that_does_not_conform_does_not_leave() -> None:
    card = replace(card_of(finetuned()), power_w=-1.0)
    with pytest.raises(GreenllmError, match=r"card\.power_w is -1\.0: .* 0;.*make it again"):
        card_object(card)
