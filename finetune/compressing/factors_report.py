"""Factors in place of matrices, as a page with a verdict. What is None is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune.bill.text import joules


def is_green(found: Mapping[str, Any], quality_share: float) -> bool:
    """Fewer joules per token at every batch size, and a loss that is no worse than allowed.

    The share of the quality is that of the likelihood per token, exp(-loss).
    """
    dense, factored = (found["models"][name] for name in ("dense", "factored"))
    pairs = list(zip(dense["decoding"], factored["decoding"], strict=True))
    known = [(a["joules_per_token"], b["joules_per_token"]) for a, b in pairs]
    if any(None in pair for pair in known) or None in (dense["loss"], factored["loss"]):
        return False
    kept = math.exp(dense["loss"]["value"] - factored["loss"]["value"])
    return kept >= quality_share and all(after < before for before, after in known)


def markdown(found: Mapping[str, Any], quality_share: float) -> tuple[str, bool]:
    """The page, and whether factors are green."""
    dense, factored = (found["models"][name] for name in ("dense", "factored"))
    rows = [("parameters", f"{dense['parameters']:,}", f"{factored['parameters']:,}",
             f"{factored['parameters'] / dense['parameters']:.2f}")]  # fmt: skip
    rows.append(("loss on held-out examples", *_losses(dense, factored)))
    for before, after in zip(dense["decoding"], factored["decoding"], strict=True):
        label = f"J per token at batch {before['batch_size']}"
        one, other = before["joules_per_token"], after["joules_per_token"]
        ratio = "-" if None in (one, other) else f"{other / one:.2f}"
        rows.append((label, joules(one), joules(other), ratio))
        label = f"s per token at batch {before['batch_size']}"
        one, other = before["seconds_per_token"], after["seconds_per_token"]
        rows.append((label, f"{one:.3g}", f"{other:.3g}", f"{other / one:.2f}"))
    green = is_green(found, quality_share)
    told = "Factors save joules here." if green else "Factors are not green here."
    lines = ["| | dense | factored | ratio |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return f"# Factors of {found['matrices']} matrices\n\n{told}\n\n" + "\n".join(lines) + "\n", (
        green
    )


def _losses(dense: Mapping[str, Any], factored: Mapping[str, Any]) -> tuple[str, str, str]:
    one, other = dense["loss"], factored["loss"]
    if one is None or other is None:
        return "-", "-", "-"
    ratio = other["value"] / one["value"] if one["value"] else math.inf
    return f"{one['value']:.4f}", f"{other['value']:.4f}", f"{ratio:.2f}"
