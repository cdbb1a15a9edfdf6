"""Pages in Markdown: a template beside the module that has the figures, filled in by Jinja.

Contract: the same template and figures give the same page. What is None is a dash. A name that the
figures do not have is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from evals.tables import UNKNOWN, text


def page(template: Path, **figures: Any) -> str:
    """The template with these figures in its places."""
    return _environment().from_string(template.read_text(encoding="utf-8")).render(figures)


def joules(energy_j: float | None) -> str:
    """Joules in a unit that fits."""
    if energy_j is None:
        return UNKNOWN
    for size, unit in ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J")):
        if abs(energy_j) >= size:
            return f"{energy_j / size:.3g} {unit}"
    return f"{energy_j * 1e3:.3g} mJ"


def interval(found: Mapping[str, float | None] | None, spec: str = "") -> str:
    """A figure with the ends of its interval."""
    if found is None:
        return UNKNOWN
    value, low, high = (text(found[name], spec) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent; of nothing it is nothing."""
    return f"{part / whole if whole else 0.0:.1%}"


def ratio(after: float | None, before: float | None) -> str:
    """How many times as much as before."""
    return UNKNOWN if not before or after is None else f"{after / before:.2f}"


@cache
def _environment() -> Environment:
    found = Environment(  # Markdown, not HTML
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    found.filters |= {
        "figure": text, "joules": joules, "interval": interval, "share": share, "ratio": ratio,
    }  # fmt: skip
    return found
