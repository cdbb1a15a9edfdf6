"""How far receipts are from the truth, by class of request. Pure.

Contract: a bias is the sum of what receipts say over the sum of what was true, less 1. MAPE is the
mean of the relative errors of single requests. An interval covers when the true total lies within
`uncertainty` of the receipt's total. A class without requests has no figures. Requests that ran no
step are left out; those whose receipt knows no joules are counted as unknown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evals.studies.truth.simulate import Outcome, Run
from greenllm.energy.receipt import Receipt

Figures = dict[str, Any]


def _is_ok(outcome: Outcome) -> bool:
    return outcome.receipt is not None and outcome.receipt.attribution == "ok"


def _is_aborted(outcome: Outcome) -> bool:
    return outcome.receipt is not None and outcome.receipt.outcome == "aborted"


CLASSES: Mapping[str, Callable[[Outcome], bool]] = {
    "all": lambda outcome: True,
    "short": lambda outcome: outcome.length == "short",
    "medium": lambda outcome: outcome.length == "medium",
    "long": lambda outcome: outcome.length == "long",
    "alone": lambda outcome: outcome.truth.most_together == 1,
    "batched": lambda outcome: outcome.truth.most_together > 1,
    "aborted": _is_aborted,
    "ok": _is_ok,
    "not ok": lambda outcome: not _is_ok(outcome),
}


def by_class(outcomes: Iterable[Outcome]) -> dict[str, Figures]:
    """The figures of every class that has requests."""
    ran = [outcome for outcome in outcomes if outcome.truth.num_steps]
    classes = {name: [one for one in ran if belongs(one)] for name, belongs in CLASSES.items()}
    return {name: figures(found) for name, found in classes.items() if found}


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """The figures of one class."""
    pairs = [(o.truth, o.receipt) for o in outcomes if _is_known(o.receipt)]
    counts = {"requests": len(outcomes), "unknown": len(outcomes) - len(pairs)}
    if not pairs:
        return counts
    known = [(truth, receipt) for truth, receipt in pairs if receipt is not None]
    true_active_j = [truth.active_j for truth, _ in known]
    active_j = [receipt.active_j or 0.0 for _, receipt in known]
    errors = [abs(a / b - 1) for a, b in zip(active_j, true_active_j, strict=True)]
    true_total_j = [truth.active_j + truth.idle_j for truth, _ in known]
    total_j = [receipt.total_j or 0.0 for _, receipt in known]
    widths = [receipt.uncertainty or 0.0 for _, receipt in known]
    misses = [abs(a - b) for a, b in zip(total_j, true_total_j, strict=True)]
    inside = [m <= u * t for m, u, t in zip(misses, widths, total_j, strict=True)]
    return {
        **counts,
        "active_bias": sum(active_j) / sum(true_active_j) - 1,
        "active_mape": statistics.mean(errors),
        "idle_bias": _bias(
            [receipt.idle_j or 0.0 for _, receipt in known], [truth.idle_j for truth, _ in known]
        ),
        "total_p90": _p90([m / t for m, t in zip(misses, true_total_j, strict=True)]),
        "coverage": sum(inside) / len(inside),
        "median_uncertainty": statistics.median(widths),
    }


def _is_known(receipt: Receipt | None) -> bool:
    return receipt is not None and receipt.active_j is not None


def _bias(found: Sequence[float], truth: Sequence[float]) -> float:
    return sum(found) / sum(truth) - 1


def _p90(errors: Sequence[float]) -> float:
    """Nine of ten errors are at most so large."""
    return sorted(errors)[min(len(errors) - 1, int(0.9 * len(errors)))]


def arm_figures(runs: Sequence[Run]) -> Figures:
    """One arm: its classes, its books, and what was in the load."""
    stats = [run.stats for run in runs]
    finals = [o.receipt.status == "final" for run in runs for o in run.outcomes if o.receipt]
    return {
        "classes": by_class(outcome for run in runs for outcome in run.outcomes),
        "residual": max(run.residual for run in runs),
        "violations": sum(run.num_violations for run in runs),
        "not_final": len(finals) - sum(finals),
        "steps": sum(one.num_steps for one in stats),
        "preemptions": sum(one.num_preemptions for one in stats),
        "cached_tokens": sum(one.cached_tokens for one in stats),
        "drafted_tokens": sum(one.drafted_tokens for one in stats),
    }
