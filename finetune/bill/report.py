"""The bill of a run as `green_report.json`: what was done, what it cost, what it is worth.

Contract: six measures (running time, model size, FLOPs, power, energy, carbon), energy by phase,
quality before and after, and the comparator; unknown is null. FLOPs are counted from parameters
and tokens: 6 N a token where every weight is trained, 4 N where the base is frozen (no gradients
of its weights), as in Kaplan et al., arXiv:2001.08361, and 2 N for what only reads them, a teacher
or the reference of dpo; attention is left out, and so are trials and evaluation, though not their
joules.

Not covered: what was spent before this run, on the base model or on trials by hand.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.bill.breakeven import AnswerCost, break_even
from finetune.bill.journal import RunJournal
from finetune.bill.outcome import RunOutcome, TrainingBill
from finetune.bill.phases import PhaseAccount, PhaseEnergy
from finetune.bill.quality import ModelQuality
from finetune.data.dataset import TrainingData
from finetune.recipe import Recipe
from greenllm.energy.carbon.footprint import EmbodiedModel, operational_g, sci_g_per_1k_tokens
from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.units import joules_to_kwh
from greenllm.intervals import Interval
from greenllm.scorecard.origin import command_line, machine_name

SCHEMA = 1
_FLOPS = "counted: parameters and tokens trained on, no attention, no trials, no evaluation"
_PACKAGES = ("greenllm", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Parameters of the base, those that were trained, bytes written, a teacher's parameters."""

    parameters: int
    trained: int
    output_bytes: int
    teacher: int | None = None


@dataclass(frozen=True, slots=True)
class Grams:
    """How joules become grams."""

    intensity: Intensity
    pue: float
    embodied: EmbodiedModel | None

    def of(self, energy: PhaseEnergy) -> dict[str, float | None]:
        """Operational and embodied grams of some energy."""
        operational = operational_g(energy.total_j, self.pue, self.intensity.g_per_kwh)
        embodied = self.embodied.grams(energy.duration_s) if self.embodied else None
        total = None if embodied is None else operational + embodied
        return {"operational_g": operational, "embodied_g": embodied, "total_g": total}

    def basis(self) -> dict[str, Any]:
        """What operational grams rest on."""
        return {
            "intensity_g_per_kwh": self.intensity.g_per_kwh,
            "intensity_zone": self.intensity.zone,
            "intensity_source": self.intensity.source,
            "intensity_year": self.intensity.year,
            "pue": self.pue,
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run has come to: how it ended, the model before and after, and the comparator."""

    outcome: RunOutcome
    before: ModelQuality
    after: ModelQuality
    comparator: Mapping[str, Any] | None = None


def build(
    recipe: Recipe,
    identity: Mapping[str, Any],
    data: TrainingData,
    sizes: ModelSizes,
    journal: RunJournal,
    account: PhaseAccount,
    result: RunResult,
    grams: Grams,
) -> dict[str, Any]:
    """The whole report."""
    seen, spent, outcome = journal.seen, account.spent(), result.outcome
    known = account.is_known
    flops = _flops_per_token(recipe, sizes) * seen.tokens
    carbon = grams.of(spent) if known else dict.fromkeys(("operational_g", "embodied_g", "total_g"))
    return {
        "schema": SCHEMA,
        "status": outcome.status,
        "reason": outcome.reason,
        "identity": dict(identity),
        "recipe": {n: str(v) if isinstance(v, Path) else v for n, v in asdict(recipe).items()},
        "data": {"digest": data.digest, **asdict(data.counts)},
        "training": {
            "steps": seen.steps,
            "tokens": seen.tokens,
            "padding_tokens": seen.padding,
            "learnt_tokens": seen.learnt,
            "losses": journal.losses,
            "validation_losses": journal.scores,
        },
        "measures": {
            "running_time_s": spent.duration_s,
            "model": asdict(sizes),
            "flops": {"value": flops, "method": _FLOPS},
            "power_w": spent.total_j / spent.duration_s if known and spent.duration_s else None,
            "energy": _energy(account, journal),
            "carbon": {
                **carbon,
                "g_per_1k_training_tokens": _sci(carbon, seen.tokens) if known else None,
                **grams.basis(),
            },
        },
        "prediction": _prediction(journal),
        "quality": _quality(result),
        "break_even": _break_even(journal.total_j, result),
        "comparator": result.comparator or {"kind": "not measured"},
    }


def _flops_per_token(recipe: Recipe, sizes: ModelSizes) -> int:
    own = (4 if recipe.is_adapter else 6) * sizes.parameters
    reference = 2 * sizes.parameters if recipe.objective == "dpo" else 0
    return own + reference + 2 * (sizes.teacher or 0)


def _energy(account: PhaseAccount, journal: RunJournal) -> dict[str, Any]:
    bill = TrainingBill.of(journal, account.meter, None)
    return {
        "total_j": bill.total_j,
        "training_j": journal.training_j,
        "total_kwh": None if bill.total_j is None else joules_to_kwh(bill.total_j),
        "joules_per_training_token": bill.joules_per_token,
        "by_phase": {
            phase: phase_dict(energy) if journal.is_known else None
            for phase, energy in journal.energy.items()
        },
        "method": bill.method,
        "measured": bill.measured,
        "uncertainty": bill.uncertainty,
        "error": account.error,
        "metering_s": account.metering_s,
    }


def phase_dict(energy: PhaseEnergy) -> dict[str, Any]:
    """One phase for the report."""
    return {"total_j": energy.total_j, **asdict(energy)}


def _sci(carbon: Mapping[str, float | None], tokens: int) -> float | None:
    return sci_g_per_1k_tokens(carbon["operational_g"] or 0.0, carbon["embodied_g"], tokens)


def _prediction(journal: RunJournal) -> dict[str, Any] | None:
    predicted_j, actual_j = journal.predicted_j, journal.total_j
    if predicted_j is None or actual_j is None:
        return None
    return {"predicted_j": predicted_j, "actual_j": actual_j, "ratio": predicted_j / actual_j}


def _break_even(bill_j: float | None, result: RunResult) -> dict[str, Any] | None:
    before, after = answers_of(result.before), answers_of(result.after)
    if bill_j is None or before is None or after is None:
        return None
    return asdict(break_even(bill_j, before, after))


def answers_of(found: ModelQuality) -> AnswerCost | None:
    """What an answer cost and was worth; None where nothing was asked or joules are unknown."""
    if found.matches is None or found.answers_j is None:
        return None
    return AnswerCost(found.answers_j / found.matches.size, found.matches)


def _quality(result: RunResult) -> dict[str, Any]:
    before, after = result.before, result.after
    return {
        "validation_loss": _pair(before.losses.mean(), after.losses.mean()),
        "validation_loss_change": _dict(after.losses.more_than(before.losses)),
        "exact_match": _pair(before.matches, after.matches),
        "exits": {
            str(layer): _pair(before.exits[layer], found) for layer, found in after.exits.items()
        },
        "preferred": _pair(before.preferred, after.preferred),
        "probe_loss": _pair(before.probe.mean(), after.probe.mean()),
        "probe_loss_change": _dict(after.probe.more_than(before.probe)),
    }


def _pair(before: Interval | None, after: Interval | None) -> dict[str, Any]:
    return {"before": _dict(before), "after": _dict(after)}


def _dict(found: Interval | None) -> dict[str, float | None] | None:
    return None if found is None else found.as_dict()


def identity_of(recipe: Recipe, base_digest: str, began: str) -> dict[str, Any]:
    """What exactly was run, and on what."""
    return {
        "command": command_line(sys.argv[1:]),
        "began": began,
        "base": recipe.model,
        "base_digest": base_digest,
        "machine": machine_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
