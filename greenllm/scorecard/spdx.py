"""The card as SPDX 3.0.1 in JSON-LD: an `ai_AIPackage` with its energy consumption.

Contract: pure; the same card and time give the same document. Joules become kilowatt-hours, as
decimal text; unknown joules leave `ai_energyConsumption` out. Training is told apart from
inference: an evaluation's energy is inference, of all its requests together. A compression has no
place there, so that its joules are in the comment.

Source: SPDX 3.0.1, classes AI/AIPackage, AI/EnergyConsumption, AI/EnergyConsumptionDescription and
vocabulary AI/EnergyUnitType (spdx.github.io/spdx-spec/v3.0.1, github.com/spdx/spdx-3-model); the
form of documents as in ai/example06 of github.com/spdx/spdx-examples.

Not covered: conformance to the AI profile, which wants licences that only the publisher knows, so
that only `core` and `software` are claimed; who supplies the model, from where, in which version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from greenllm.energy.units import joules_to_kwh, plain_decimal
from greenllm.scorecard.card import Card
from greenllm.scorecard.huggingface import name_of

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
SPEC_VERSION = "3.0.1"
_ABOUT = "_:creationinfo"
_SLOTS: Mapping[str, str] = {
    "fine-tuning": "ai_finetuningEnergyConsumption",
    "pre-training": "ai_trainingEnergyConsumption",
    "evaluation": "ai_inferenceEnergyConsumption",
}


def spdx_document(card: Card, created: datetime) -> dict[str, Any]:
    """The document; `created` is when it is made, with a time zone."""
    digest = hashlib.sha256(json.dumps(asdict(card), sort_keys=True).encode()).hexdigest()[:32]
    base = f"urn:spdx:greenllm:{digest}"
    package = _package(card, f"{base}#AIPackage")
    return {
        "@context": CONTEXT,
        "@graph": [
            {
                "type": "CreationInfo",
                "@id": _ABOUT,
                "specVersion": SPEC_VERSION,
                "created": created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "createdBy": [f"{base}#SoftwareAgent"],
            },
            _element("SoftwareAgent", f"{base}#SoftwareAgent", name="greenllm"),
            _element(
                "SpdxDocument",
                base,
                profileConformance=["core", "software"],
                rootElement=[package["spdxId"]],
            ),
            package,
        ],
    }


def _element(kind: str, spdx_id: str, **values: Any) -> dict[str, Any]:
    return {"type": kind, "spdxId": spdx_id, "creationInfo": _ABOUT, **values}


def _package(card: Card, spdx_id: str) -> dict[str, Any]:
    found = _element(
        "ai_AIPackage",
        spdx_id,
        name=name_of(card),
        software_primaryPurpose="model",
        comment=_comment(card),
    )
    if (energy := _energy(card)) is not None:
        found["ai_energyConsumption"] = energy
    if metrics := _metrics(card):
        found["ai_metric"] = metrics
    return found


def _energy(card: Card) -> dict[str, Any] | None:
    slot = _SLOTS.get(card.identity.what)
    if slot is None or card.energy.total_j is None:
        return None
    amount = {
        "type": "ai_EnergyConsumptionDescription",
        "ai_energyQuantity": plain_decimal(joules_to_kwh(card.energy.total_j)),
        "ai_energyUnit": "kilowattHour",
    }
    return {"type": "ai_EnergyConsumption", slot: [amount]}


def _metrics(card: Card) -> list[dict[str, str]]:
    return [
        {
            "type": "DictionaryEntry",
            "key": f"{one.name}, {one.measure}",
            "value": plain_decimal(one.value),
        }
        for one in card.quality
        if one.value is not None
    ]


def _amount(card: Card) -> str:
    """The joules where nothing else has them."""
    total_j = card.energy.total_j
    if total_j is None or card.identity.what in _SLOTS:
        return "Energy"
    return f"{plain_decimal(total_j)} J"


def _comment(card: Card) -> str:
    """How the joules were found, and what they do not cover."""
    how = {True: "measured", False: "modelled, not measured", None: "unknown"}
    known = None if card.energy.total_j is None else card.energy.measured
    method = f" ({card.energy.method})" if card.energy.method else ""
    head = f"{_amount(card)} of one {card.identity.what}: {how[known]}{method}"
    return f"{head}. Not covered: {'; '.join(card.notes)}."
