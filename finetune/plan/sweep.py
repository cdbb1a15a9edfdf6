"""Settings tried against each other by successive halving: the better half goes on, twice as far.

Every trial starts anew, so that its learning rate runs through the whole schedule; the rungs are
an eighth, a quarter, half of the run's steps. Trials are scored by the validation loss, and their
joules are a phase of the bill: a sweep whose losers are left out is no bill.

Source: Jamieson and Talwalkar, arXiv:1502.07943. Not covered: settings that are continuous.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from finetune.recipe import Recipe
from greenllm.config import ConfigError, convert

_SWEEPABLE = frozenset(
    {"learning_rate", "rank", "alpha", "dropout", "schedule", "weight_decay", "batch_size",
     "warmup_share", "targets", "max_grad_norm"}
)  # fmt: skip
_FIRST_SHARE = 8
MOST_TRIALS = 64


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """One try: its settings, how far it went, and what came of it."""

    settings: dict[str, Any]
    steps: int
    validation_loss: float | None
    joules: float | None


def settings_of(text: str) -> list[dict[str, Any]]:
    """Every combination of `name=value,value;name=value`.

    Raises:
        ConfigError: a name cannot be swept, or a value is not allowed.
    """
    hints = get_type_hints(Recipe)
    axes: list[list[tuple[str, Any]]] = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, values = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in _SWEEPABLE:
            raise ConfigError(
                f"--sweep: {name} is none of {', '.join(sorted(_SWEEPABLE))}", "sweep"
            )
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not found:
            raise ConfigError(f"--sweep: {name} has no values; write {name}=A,B", "sweep")
        axes.append([(name, convert(f"--sweep {name}", value, hints[name])) for value in found])
    if math.prod(map(len, axes)) > MOST_TRIALS:
        raise ConfigError(f"--sweep has more than {MOST_TRIALS} combinations; name fewer", "sweep")
    combined = [dict(choice) for choice in itertools.product(*axes)]
    if len(combined) < 2:
        raise ConfigError(
            "--sweep needs at least two combinations, e.g. learning_rate=1e-3,4e-3", "sweep"
        )
    return combined


def rungs(num_trials: int, steps: int) -> list[tuple[int, int]]:
    """How many trials go how far, rung by rung, until one is left."""
    found: list[tuple[int, int]] = []
    share = _FIRST_SHARE
    while num_trials > 1 and share > 1:
        found.append((num_trials, max(1, steps // share)))
        num_trials, share = -(-num_trials // 2), share // 2
    return found


def best(trials: Sequence[SweepTrial], count: int) -> list[SweepTrial]:
    """Those with the least loss; a trial that failed has none and comes last."""
    ranked = sorted(trials, key=_rank)
    return ranked[:count]


def _rank(trial: SweepTrial) -> tuple[bool, float]:
    return (trial.validation_loss is None, trial.validation_loss or 0.0)


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with a trial's settings.

    Raises:
        ConfigError: they do not fit the rest of it.
    """
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return replace(recipe, **given)
