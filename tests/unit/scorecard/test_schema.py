"""The published schema is that of the values, and what it refuses is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from greenllm.core import GreenllmError
from greenllm.scorecard.card import VERSION, told
from greenllm.scorecard.reading import card_of
from greenllm.scorecard.schema import card_object, card_schema, faults, schema_of
from tests.unit.scorecard.samples import compressed, evaluated, finetuned

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "docs" / "reference" / "score_card.schema.json"


@dataclass(frozen=True)
class Inner:
    """Inner."""

    a: int = told("A.", minimum=1)


@dataclass(frozen=True)
class Outer:
    """Outer."""

    inner: Inner | None = told("I.")
    names: tuple[str, ...] = told("N.")
    by_name: Mapping[str, float] | None = told("M.")


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


def test_types_become_keywords() -> None:
    schema = schema_of(Outer)
    properties = schema["properties"]
    assert properties["inner"]["anyOf"] == [{"$ref": "#/$defs/Inner"}, {"type": "null"}]
    assert properties["names"]["items"] == {"type": "string"}
    assert properties["by_name"]["type"] == ["object", "null"]
    assert properties["by_name"]["additionalProperties"] == {"type": "number"}
    assert schema["$defs"]["Inner"]["properties"]["a"] == {
        "description": "A.", "type": "integer", "minimum": 1
    }  # fmt: skip


def test_types_without_a_schema_are_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        """Odd."""

        a: int | str = told("A.")

    @dataclass(frozen=True)
    class Bytes:
        """Bytes."""

        a: bytes = told("A.")

    for kind in (Odd, Bytes):
        with pytest.raises(TypeError, match="no JSON Schema"):
            schema_of(kind)


@pytest.mark.parametrize(
    "document",
    [finetuned(), evaluated(), compressed()],
    ids=["finetune", "evaluation", "compression"],
)
def test_cards_of_all_kinds_conform(document: dict[str, Any]) -> None:
    found = card_object(card_of(document))
    assert faults(found, card_schema()) == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found


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
def test_what_does_not_conform_is_found(spoil: Callable[[dict[str, Any]], None]) -> None:
    found = copy.deepcopy(card_object(card_of(finetuned())))
    spoil(found)
    assert len(faults(found, card_schema())) == 1


def test_a_card_that_does_not_conform_does_not_leave() -> None:
    card = replace(card_of(finetuned()), power_w=-1.0)
    with pytest.raises(GreenllmError, match=r"card\.power_w is -1\.0, below 0.*make it again"):
        card_object(card)
