"""A fine-tune's report as pages for people: the report itself, and the model card around it.

Contract: the figures are those of the JSON; what is null there is a dash here, and modelled joules
say so. Not covered: intended use, which only the user knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.pages import page
from greenllm.scorecard.huggingface import front_matter
from greenllm.scorecard.reading import card_of_finetune

_HERE = Path(__file__).parent


def markdown(found: Mapping[str, Any], plot: str | None = None) -> str:
    """The report as a page; `plot` is the name of a picture beside it."""
    return page(_HERE / "report.md.jinja", **found, plot=plot)


def card(found: Mapping[str, Any]) -> str:
    """README.md of the output folder: the score card's metadata, and the report below it."""
    metadata = front_matter(card_of_finetune(found))
    return page(_HERE / "card.md.jinja", **found, metadata=metadata, report=markdown(found))
