"""The model card of what was trained: the score card's metadata, and the report below it.

Not covered: intended use, which only the user knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.bill.text import joules, markdown
from greenllm.scorecard.huggingface import front_matter
from greenllm.scorecard.reading import card_of_finetune


def _emissions(measures: Mapping[str, Any]) -> str:
    """What the metadata above holds; nothing where it holds no grams."""
    if measures["carbon"]["operational_g"] is None:
        return ""
    return (
        " The `emissions` above are the operational grams; what the hardware's manufacture adds is"
        " below."
    )


def card(found: Mapping[str, Any]) -> str:
    """README.md of the output folder."""
    recipe, measures = found["recipe"], found["measures"]
    energy = measures["energy"]
    body = markdown(found).replace("# ", "## ", 1)
    return "\n".join(
        [
            front_matter(card_of_finetune(found)),
            f"# {recipe['model']}, fine-tuned with {recipe['method']}",
            "",
            "## Environmental impact",
            "",
            f"Training, its evaluation included, took {joules(energy['total_j'])}"
            f" ({energy['method']}) in {measures['running_time_s']:.0f} s.{_emissions(measures)}",
            "",
            body,
        ]
    )
