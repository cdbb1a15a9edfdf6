"""Looks for other distributions that install packages with our top-level names.

`serving`, `finetune` and `evals` are names others use too, and installers overwrite silently.
"""

from __future__ import annotations

from importlib.metadata import packages_distributions

TOP_LEVEL = ("greenllm", "serving", "finetune", "evals")


def find_clashes(owners: dict[str, list[str]] | None = None) -> list[str]:
    """One sentence per name that somebody else installed as well."""
    found = packages_distributions() if owners is None else owners
    clashes: list[str] = []
    for name in TOP_LEVEL:
        others = sorted({owner for owner in found.get(name, []) if owner != "greenllm"})
        if others:
            who = ", ".join(others)
            clashes.append(
                f"{name!r} is also installed by {who}: give greenllm its own environment"
            )
    return clashes
