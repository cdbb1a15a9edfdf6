"""The model card of what was trained, with Hugging Face's `co2_eq_emissions`.

Source: the metadata of model cards, huggingface.co/docs/hub/model-cards-co2 (grams, a plain
number). Not covered: intended use, which only the user knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.text import joules, markdown


def card(found: Mapping[str, Any]) -> str:
    """README.md of the output folder."""
    recipe, measures = found["recipe"], found["measures"]
    carbon, energy = measures["carbon"], measures["energy"]
    head = [
        "---",
        f"base_model: {recipe['model']}",
        f"library_name: {'peft' if recipe['method'] != 'full' else 'transformers'}",
        "tags: [greenllm]",
    ]
    if carbon["operational_g"] is not None:
        head += [
            "co2_eq_emissions:",
            f"  emissions: {_plain(carbon['operational_g'])}",
            f'  source: "greenllm: {energy["method"]} joules x {carbon["intensity_source"]}"',
            "  training_type: fine-tuning",
            f'  geographical_location: "{carbon["intensity_zone"]}"',
            f'  hardware_used: "{found["identity"]["machine"]}"',
        ]
    body = markdown(found).replace("# ", "## ", 1)
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {recipe['model']}, fine-tuned with {recipe['method']}",
            "",
            "## Environmental impact",
            "",
            f"Training, its evaluation included, took {joules(energy['total_j'])}"
            f" ({energy['method']}) in {measures['running_time_s']:.0f} s. The `emissions` above"
            " are the operational grams; what the hardware's manufacture adds is below.",
            "",
            body,
        ]
    )


def _plain(grams: float) -> str:
    """Plain decimals: the hub does not read exponents."""
    return f"{grams:.6f}".rstrip("0").rstrip(".") if grams >= 1e-6 else f"{grams:.12f}"
