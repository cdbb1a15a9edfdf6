"""The card as the metadata of a Hugging Face model card: YAML between two lines of dashes.

Contract: pure. `co2_eq_emissions` are the operational grams, and are left out where they are
unknown, and for an evaluation: the Hub means those of making the model. A compression's say so in
`source`, and are fine-tuning only where what was left was healed; a student is neither of the two
that the Hub knows. Figures of quality are the results of a model-index, under the name of what was
made; one without a value is left out.

Source: huggingface.co/docs/hub/model-cards-co2.

Not covered: licence, languages, intended use, which only the user knows; verified results.
"""

from __future__ import annotations

from typing import Any

from greenllm.scorecard.card import Card

TRAINING = ("fine-tuning", "pre-training")
# A phase of training, in the report of a compression that healed what was left.
_HEALING = "training"


def front_matter(card: Card) -> str:
    """The whole block, with a line break at its end."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        **_origin(card), tags=["greenllm"], co2_eq_emissions=_emissions(card), **_results(card)
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _origin(card: Card) -> dict[str, Any]:
    """What was made names its base; what was asked is the model itself."""
    identity = card.identity
    if not _is_derived(card):
        return {}
    is_adapter = identity.what in TRAINING and identity.method != "full"
    library = "peft" if is_adapter else "transformers"
    return {"base_model": identity.model, "library_name": library}


def _emissions(card: Card) -> dict[str, Any] | None:
    carbon, identity = card.carbon, card.identity
    if carbon.operational_g is None or identity.what == "evaluation":
        return None
    scope = "" if identity.what in TRAINING else f", {identity.what}"
    method, by = card.energy.method or "unknown", carbon.intensity_source or "unknown intensity"
    found = {
        "emissions": carbon.operational_g,
        "source": f"greenllm{scope}: {method} joules x {by}",
        "training_type": _training_type(card),
        "geographical_location": carbon.intensity_zone,
        "hardware_used": identity.machine,
    }
    return {name: value for name, value in found.items() if value is not None}


def _training_type(card: Card) -> str | None:
    """One of the two that the Hub knows, or None."""
    identity = card.identity
    if identity.what in TRAINING:
        return identity.what
    is_healed = any(part.name == _HEALING for part in card.energy.parts)
    is_cut = identity.what == "compression" and identity.method != "student"
    return "fine-tuning" if is_cut and is_healed else None


def _results(card: Card) -> dict[str, Any]:
    """Figures of quality and the name that they go by; nothing where there are none."""
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="text-generation", dataset_type=one.data, dataset_name=one.data,
            metric_type=one.measure.replace(" ", "-"), metric_name=f"{one.name}, {one.measure}",
            metric_value=one.value,
        )
        for one in card.quality
        if one.value is not None
    ]  # fmt: skip
    return {"model_name": name_of(card), "eval_results": results} if results else {}


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
