"""The `energy` object of a job: of a run that has ended, and of one that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.bill.journal import RunJournal
from finetune.bill.outcome import TrainingBill


def energy_of(bill: TrainingBill) -> dict[str, Any]:
    """A finished run's joules."""
    return {
        "energy_joules": bill.total_j,
        "joules_per_training_token": bill.joules_per_token,
        "by_phase_joules": dict(bill.by_phase_j),
        "method": bill.method,
        "measured": bill.measured,
        "uncertainty": bill.uncertainty,
        "operational_gco2e": bill.operational_g,
        "predicted_joules": bill.predicted_j,
    }


def energy_of_journal(journal: RunJournal) -> dict[str, Any]:
    """The joules of a run so far."""
    return {
        "energy_joules": journal.total_j,
        "by_phase_joules": journal.by_phase_j,
        "predicted_joules": journal.predicted_j,
    }


def spent_since(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float, float]:
    """Joules and grams by which one `energy` object exceeds another; unknown ones are none."""
    names = ("energy_joules", "operational_gco2e")
    joules, grams = (max(0.0, (now.get(n) or 0.0) - (before.get(n) or 0.0)) for n in names)
    return joules, grams
