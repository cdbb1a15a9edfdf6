"""The card as the metadata of a Hugging Face model card: YAML between two lines of dashes.

Contract: pure. `co2_eq_emissions` are the operational grams, plain decimals, and are left out where
they are unknown; an evaluation's say in `source` that they are not those of training. Figures of
quality are the results of a model-index; one without a value is left out.

Source: huggingface.co/docs/hub/model-cards-co2; `model-index` in modelcard.md of
github.com/huggingface/hub-docs (task, dataset and metrics of a result).

Not covered: licence, languages, intended use, which only the user knows; verified results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from greenllm.energy.units import plain_decimal
from greenllm.scorecard.card import Card, Quality

TRAINING = ("fine-tuning", "pre-training")


def front_matter(card: Card) -> str:
    """The whole block, with a line break at its end."""
    lines = ["---", *_origin(card), "tags: [greenllm]", *_emissions(card), *_index(card), "---"]
    return "\n".join(lines) + "\n"


def _origin(card: Card) -> list[str]:
    """What was trained names its base; what was asked is the model itself."""
    identity = card.identity
    if identity.what not in TRAINING or identity.method is None:
        return []
    library = "transformers" if identity.method == "full" else "peft"
    return [f"base_model: {_quoted(identity.model)}", f"library_name: {library}"]


def _emissions(card: Card) -> list[str]:
    carbon, identity = card.carbon, card.identity
    if carbon.operational_g is None:
        return []
    is_training = identity.what in TRAINING
    scope = "" if is_training else f", {identity.what} and not training"
    method, by = card.energy.method or "unknown", carbon.intensity_source or "unknown intensity"
    lines = [
        "co2_eq_emissions:",
        f"  emissions: {plain_decimal(carbon.operational_g)}",
        f"  source: {_quoted(f'greenllm{scope}: {method} joules x {by}')}",
    ]
    lines += [f"  training_type: {identity.what}"] if is_training else []
    for name, value in (
        ("geographical_location", carbon.intensity_zone),
        ("hardware_used", identity.machine),
    ):
        lines += [] if value is None else [f"  {name}: {_quoted(value)}"]
    return lines


def _index(card: Card) -> list[str]:
    results = [line for one in card.quality if one.value is not None for line in _result(one)]
    if not results:
        return []
    return ["model-index:", f"- name: {_quoted(name_of(card))}", "  results:", *results]


def name_of(card: Card) -> str:
    """What the figures are of: the model, or what was made of it."""
    identity = card.identity
    if identity.what not in TRAINING or identity.method is None:
        return identity.model
    return f"{identity.model}, {identity.what} with {identity.method}"


def _result(one: Quality) -> Sequence[str]:
    kind = one.measure.replace(" ", "-")
    return (
        "  - task:",
        "      type: text-generation",
        "    dataset:",
        f"      type: {_quoted(one.data)}",
        f"      name: {_quoted(one.data)}",
        "    metrics:",
        f"    - type: {_quoted(kind)}",
        f"      name: {_quoted(f'{one.name}, {one.measure}')}",
        f"      value: {plain_decimal(one.value or 0.0)}",
    )


def _quoted(text: str) -> str:
    """A JSON string is a YAML string."""
    return json.dumps(text, ensure_ascii=False)
