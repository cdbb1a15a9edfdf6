"""The model cards, rendered from what training.json records, so that their figures cannot drift.

Contract: pure functions of the record; the texts are `card.md` and `draft_card.md`. Not covered:
judgement of style; the samples in the card are whatever the model answered, right or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.tables import grid, table, value

Record = Mapping[str, Any]
_TEXTS = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    autoescape=False,
)


def render_card(record: Record) -> str:
    """The whole card of the model."""
    scores: Mapping[str, Mapping[str, int]] = record["held_out"]
    score_rows = [
        (task, str(s["right"]), str(s["asked"]), f"{s['right'] / s['asked']:.1%}")
        for task, s in scores.items()
    ]
    exits: Mapping[str, Mapping[str, float]] = record["exits"]
    exit_rows = [
        (name, *(f"{share:.1%}" for share in shares.values())) for name, shares in exits.items()
    ]
    return _TEXTS.get_template("card.md").render(
        record,
        score_table=grid(("task", "right", "asked", "share"), score_rows),
        exit_table=grid(("text", *(f"layer {layer}" for layer in exits["answers"])), exit_rows),
        perplexity_table=_perplexity_table(record),
        weak=[task for task, s in scores.items() if 2 * s["right"] < s["asked"]],
    )


def render_draft_card(record: Record) -> str:
    """The whole card of its draft."""
    rows = [(name, f"{share:.1%}") for name, share in record["agreement"].items()]
    return _TEXTS.get_template("draft_card.md").render(
        record,
        agreement_table=grid(("text", "share"), rows),
        perplexity_table=_perplexity_table(record),
    )


def _perplexity_table(record: Record) -> str:
    columns = {
        "text": value("text"),
        "tokens": value("tokens", ",.0f"),
        "perplexity": value("perplexity", ".2f"),
        "bits per byte": value("bits_per_byte", ".4g"),
    }
    rows = [{"text": name, **found} for name, found in record["perplexity"].items()]
    return table(columns, rows)
