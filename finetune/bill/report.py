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
from typing import Any

from finetune.bill.breakeven import Answers, break_even
from finetune.bill.journal import RunJournal
from finetune.bill.phases import LEARNING, Energy, PhaseAccount
from finetune.bill.quality import Quality
from finetune.data.dataset import Data
from finetune.recipe import Recipe
from greenllm.energy.carbon.footprint import EmbodiedModel, operational_g, sci_g_per_1k_tokens
from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.units import joules_to_kwh
from greenllm.intervals import Estimate
from greenllm.scorecard.origin import command_line, machine_name

SCHEMA = 1
_FLOPS = "counted: parameters and tokens trained on, no attention, no trials, no evaluation"
_PACKAGES = ("greenllm", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Sizes:
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

    def of(self, energy: Energy) -> dict[str, float | None]:
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
class Outcome:
    """How a run ended."""

    status: str
    reason: str | None
    before: Quality
    after: Quality
    comparator: Mapping[str, Any] | None


def build(
    recipe: Recipe,
    identity: Mapping[str, Any],
    data: Data,
    sizes: Sizes,
    journal: RunJournal,
    account: PhaseAccount,
    outcome: Outcome,
    grams: Grams,
) -> dict[str, Any]:
    """The whole report."""
    seen, spent = journal.seen, account.spent()
    known = account.is_known
    flops = _flops_per_token(recipe, sizes) * seen.tokens
    carbon = grams.of(spent) if known else dict.fromkeys(("operational_g", "embodied_g", "total_g"))
    return {
        "schema": SCHEMA,
        "status": outcome.status,
        "reason": outcome.reason,
        "identity": dict(identity),
        "recipe": _plain(asdict(recipe)),
        "data": {"digest": data.digest, **data.counts.as_dict()},
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
            "energy": _energy(account, seen.tokens),
            "carbon": {
                **carbon,
                "g_per_1k_training_tokens": _sci(carbon, seen.tokens) if known else None,
                **grams.basis(),
            },
        },
        "prediction": _prediction(journal.predicted_j, account),
        "quality": _quality(outcome),
        "break_even": _break_even(account, outcome),
        "comparator": outcome.comparator or {"kind": "not measured"},
    }


def _flops_per_token(recipe: Recipe, sizes: Sizes) -> int:
    own = (4 if recipe.is_adapter else 6) * sizes.parameters
    reference = 2 * sizes.parameters if recipe.objective == "dpo" else 0
    return own + reference + 2 * (sizes.teacher or 0)


def _energy(account: PhaseAccount, tokens: int) -> dict[str, Any]:
    meter, spent = account.meter, account.spent()
    total_j = spent.total_j if account.is_known else None
    training_j = account.spent(*LEARNING).total_j if account.is_known else None
    return {
        "total_j": total_j,
        "training_j": training_j,
        "total_kwh": None if total_j is None else joules_to_kwh(total_j),
        "joules_per_training_token": training_j / tokens if training_j and tokens else None,
        "by_phase": {
            phase: phase_dict(energy) if account.is_known else None
            for phase, energy in account.by_phase().items()
        },
        "method": meter.method,
        "measured": meter.measured,
        "uncertainty": meter.uncertainty if account.is_known else None,
        "error": account.error,
        "metering_s": account.metering_s,
    }


def phase_dict(energy: Energy) -> dict[str, Any]:
    """One phase for the report."""
    return {
        "total_j": energy.total_j,
        "active_j": energy.active_j,
        "idle_j": energy.idle_j,
        "foreign_j": energy.foreign_j,
        "duration_s": energy.duration_s,
        "domains_j": dict(energy.domains_j),
    }


def _sci(carbon: Mapping[str, float | None], tokens: int) -> float | None:
    return sci_g_per_1k_tokens(carbon["operational_g"] or 0.0, carbon["embodied_g"], tokens)


def _prediction(predicted_j: float | None, account: PhaseAccount) -> dict[str, Any] | None:
    if predicted_j is None or not account.is_known:
        return None
    actual_j = account.spent().total_j
    return {"predicted_j": predicted_j, "actual_j": actual_j, "ratio": predicted_j / actual_j}


def _break_even(account: PhaseAccount, outcome: Outcome) -> dict[str, Any] | None:
    before, after = answers_of(outcome.before), answers_of(outcome.after)
    if not account.is_known or before is None or after is None:
        return None
    return asdict(break_even(account.spent().total_j, before, after))


def answers_of(found: Quality) -> Answers | None:
    """What an answer cost and was worth; None where nothing was asked or joules are unknown."""
    if found.matches is None or found.answers_j is None:
        return None
    return Answers(found.answers_j / found.matches.size, found.matches)


def _quality(outcome: Outcome) -> dict[str, Any]:
    before, after = outcome.before, outcome.after
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


def _pair(before: Estimate | None, after: Estimate | None) -> dict[str, Any]:
    return {"before": _dict(before), "after": _dict(after)}


def _dict(found: Estimate | None) -> dict[str, float | None] | None:
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


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if hasattr(value, "__fspath__") else value
