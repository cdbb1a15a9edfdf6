"""The carbon of a card, as all reports write it.

Contract: pure; what a report does not say is None.
"""

from __future__ import annotations

from greenllm.scorecard.card import Carbon
from greenllm.scorecard.document import Document, count, number, text


def carbon_of(found: Document) -> Carbon:
    """Grams and what they rest on.

    Raises:
        ConfigError: a value is of another kind.
    """
    return Carbon(
        operational_g=number(found, "operational_g"),
        embodied_g=number(found, "embodied_g"),
        total_g=number(found, "total_g"),
        intensity_g_per_kwh=number(found, "intensity_g_per_kwh"),
        intensity_zone=text(found, "intensity_zone"),
        intensity_source=text(found, "intensity_source"),
        intensity_year=count(found, "intensity_year"),
        pue=number(found, "pue"),
    )
