"""The card as the metadata of a Hugging Face model card: YAML between two lines of dashes.

Contract: pure. `co2_eq_emissions` are the operational grams, plain decimals, and are left out where
they are unknown, and for an evaluation: the Hub means those of making the model. A compression's
say so in `source`, and are fine-tuning only where what was left was healed; a student is neither of
the two that the Hub knows. Figures of quality are the results of a model-index, under the name of
what was made; one without a value is left out.

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
# A phase of training, in the report of a compression that healed what was left.
_HEALING = "training"


def front_matter(card: Card) -> str:
    """The whole block, with a line break at its end."""
    lines = ["---", *_origin(card), "tags: [greenllm]", *_emissions(card), *_index(card), "---"]
    return "\n".join(lines) + "\n"


def _origin(card: Card) -> list[str]:
    """What was made names its base; what was asked is the model itself."""
    identity = card.identity
    if not _is_derived(card):
        return []
    is_adapter = identity.what in TRAINING and identity.method != "full"
    library = "peft" if is_adapter else "transformers"
    return [f"base_model: {_quoted(identity.model)}", f"library_name: {library}"]


def _emissions(card: Card) -> list[str]:
    carbon, identity = card.carbon, card.identity
    if carbon.operational_g is None or identity.what == "evaluation":
        return []
    scope = "" if identity.what in TRAINING else f", {identity.what}"
    method, by = card.energy.method or "unknown", carbon.intensity_source or "unknown intensity"
    lines = [
        "co2_eq_emissions:",
        f"  emissions: {plain_decimal(carbon.operational_g)}",
        f"  source: {_quoted(f'greenllm{scope}: {method} joules x {by}')}",
    ]
    kind = _training_type(card)
    lines += [] if kind is None else [f"  training_type: {kind}"]
    for name, value in (
        ("geographical_location", carbon.intensity_zone),
        ("hardware_used", identity.machine),
    ):
        lines += [] if value is None else [f"  {name}: {_quoted(value)}"]
    return lines


def _training_type(card: Card) -> str | None:
    """One of the two that the Hub knows, or None."""
    identity = card.identity
    if identity.what in TRAINING:
        return identity.what
    is_healed = any(part.name == _HEALING for part in card.energy.parts)
    is_cut = identity.what == "compression" and identity.method != "student"
    return "fine-tuning" if is_cut and is_healed else None


def _index(card: Card) -> list[str]:
    results = [line for one in card.quality if one.value is not None for line in _result(one)]
    if not results:
        return []
    return ["model-index:", f"- name: {_quoted(name_of(card))}", "  results:", *results]


def name_of(card: Card) -> str:
    """What the figures are of: the model, or what was made of it."""
    identity = card.identity
    if not _is_derived(card):
        return identity.model
    method = "" if identity.method is None else f" with {identity.method}"
    return f"{identity.model}, {identity.what}{method}"


def _is_derived(card: Card) -> bool:
    """Whether the model that the card names is the base of what was made."""
    identity = card.identity
    return identity.what == "compression" or (
        identity.what in TRAINING and identity.method is not None
    )


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
