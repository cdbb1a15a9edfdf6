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
    agent, package = f"{base}#SoftwareAgent", f"{base}#AIPackage"
    about = {
        "type": "CreationInfo",
        "@id": _ABOUT,
        "specVersion": SPEC_VERSION,
        "created": created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "createdBy": [agent],
    }
    profiles = ["core", "software"]
    graph = [
        about,
        _element("SoftwareAgent", agent, name="greenllm"),
        _element("SpdxDocument", base, profileConformance=profiles, rootElement=[package]),
        _element("ai_AIPackage", package, **_package(card)),
    ]
    return {"@context": CONTEXT, "@graph": graph}


def _element(kind: str, spdx_id: str, **values: Any) -> dict[str, Any]:
    """An element of the graph; what is empty is left out."""
    known = {name: value for name, value in values.items() if value}
    return {"type": kind, "spdxId": spdx_id, "creationInfo": _ABOUT, **known}


def _package(card: Card) -> dict[str, Any]:
    metrics = {f"{one.name}, {one.measure}": one.value for one in card.quality}
    return {
        "name": name_of(card),
        "software_primaryPurpose": "model",
        "comment": _comment(card),
        "ai_energyConsumption": _energy(card),
        "ai_metric": [
            {"type": "DictionaryEntry", "key": key, "value": plain_decimal(value)}
            for key, value in metrics.items()
            if value is not None
        ],
    }


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


def _comment(card: Card) -> str:
    """How the joules were found, what they do not cover; and how many, if nothing else has them."""
    energy, what = card.energy, card.identity.what
    is_elsewhere = energy.total_j is None or what in _SLOTS
    amount = "Energy" if is_elsewhere else f"{plain_decimal(energy.total_j or 0.0)} J"
    known = None if energy.total_j is None else energy.measured
    how = {True: "measured", False: "modelled, not measured", None: "unknown"}[known]
    method = f" ({energy.method})" if energy.method else ""
    return f"{amount} of one {what}: {how}{method}. Not covered: {'; '.join(card.notes)}."
