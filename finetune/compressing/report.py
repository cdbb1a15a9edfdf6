"""What a compression cost and what it is worth: before and after, and when it pays back.

Contract: `cost_j` is everything spent on making the smaller model, calibration, healing and the
teacher included; scoring both models is beside it, as `scoring_j`. A compression is green if a
right answer costs fewer joules than before and enough of the quality is kept; it is said so, and
why, either way: by the shares themselves, and where the ends of their intervals would say otherwise
that is told. Unknown joules are None and nothing is called green then. Grams are those of the
electricity of `cost_j`.

Not covered: what the model as it was cost to train; what the hardware's manufacture adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from evals.pages import page
from finetune.bill.breakeven import AnswerCost, break_even
from finetune.bill.report import Grams
from greenllm.energy.carbon.footprint import operational_g
from greenllm.intervals import Interval
from greenllm.model.files import local_folder
from greenllm.model.options import resolve

SCHEMA = 1
_FIGURES = {
    "parameters": "parameters",
    "bytes of weights": "weight_bytes",
    "J per answer": "joules_per_answer",
    "J per right answer": "joules_per_right_answer",
    "J per token": "joules_per_token",
    "s per token": "seconds_per_token",
    "p95 s": "p95_s",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models."""

    parameters: int
    weight_bytes: int
    solved: Interval
    joules_per_answer: float | None
    joules_per_token: float | None
    seconds_per_token: float
    p95_s: float
    by_task: Mapping[str, float]

    @property
    def joules_per_right_answer(self) -> float | None:
        """Wrong answers included; None where nothing was right or joules are unknown."""
        if self.joules_per_answer is None or not self.solved.value:
            return None
        return self.joules_per_answer / self.solved.value

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            **asdict(self),
            "solved": self.solved.as_dict(),
            "by_task": dict(self.by_task),
            "joules_per_right_answer": self.joules_per_right_answer,
        }


def sizes_of(model: str) -> tuple[int, int]:
    """Parameters and bytes of a model's safetensors files; tied weights count once."""
    files = sorted(Path(local_folder(resolve(model))).glob("*.safetensors"))
    parameters = 0
    for path in files:
        with safe_open(path, framework="np") as file:
            shapes = (file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118
            parameters += sum(map(math.prod, shapes))
    return parameters, sum(path.stat().st_size for path in files)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is green, and why or why not."""

    is_green: bool
    reason: str


def verdict(before: Side, after: Side, quality_share: float) -> Verdict:
    """Fewer joules for a right answer, at enough of the quality."""
    if not before.solved.value:
        return Verdict(False, "not known: nothing was right before")
    if not after.solved.value:
        return Verdict(False, "not green: nothing is right afterwards")
    kept = after.solved.value / before.solved.value
    at_least = after.solved.low / before.solved.high
    ours, theirs = after.joules_per_right_answer, before.joules_per_right_answer
    if ours is None or theirs is None:
        return Verdict(False, "not known: joules of a right answer are not known for both")
    ratio = ours / theirs
    told = f"a right answer costs {ratio:.2f} x the joules, {kept:.0%} of the quality is kept"
    if at_least < quality_share <= kept:
        told += f" (at least {at_least:.0%} by the intervals)"
    if kept < quality_share:
        return Verdict(False, f"not green: {told}, less than the {quality_share:.0%} asked for")
    if ratio >= 1:
        return Verdict(False, f"not green: {told}")
    return Verdict(True, told)


@dataclass(frozen=True, slots=True)
class Costs:
    """Joules of making, by phase, and of scoring; None where they are unknown.

    `uncertainty` is the meter's, `duration_s` what making took; `scoring_methods` are those of the
    servers' meters, by which answers are compared.
    """

    cost_j: float | None
    scoring_j: float | None
    by_phase: Mapping[str, float | None]
    method: str
    measured: bool
    uncertainty: float | None = None
    duration_s: float | None = None
    scoring_methods: tuple[str, ...] = ()


def build(
    identity: Mapping[str, Any],
    sides: tuple[Side, Side],
    costs: Costs,
    grams: Grams,
    quality_share: float,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole report."""
    before, after = sides
    found = verdict(before, after, quality_share)
    return {
        "schema": SCHEMA,
        "kind": "compression",
        "identity": dict(identity),
        "before": before.as_dict(),
        "after": after.as_dict(),
        "costs": asdict(costs),
        "carbon": _carbon(costs.cost_j, grams),
        "break_even": _payback(costs, before, after),
        "is_green": found.is_green,
        "verdict": found.reason,
        "facts": dict(facts),
    }


def _carbon(cost_j: float | None, grams: Grams) -> dict[str, Any]:
    """Grams of making it and what they rest on; all None where the joules are unknown."""
    basis = grams.basis()
    if cost_j is None:
        return dict.fromkeys(("operational_g", "embodied_g", "total_g", *basis))
    operational = operational_g(cost_j, grams.pue, grams.intensity.g_per_kwh)
    return {"operational_g": operational, "embodied_g": None, "total_g": None, **basis}


def _payback(costs: Costs, before: Side, after: Side) -> dict[str, Any] | None:
    is_one_meter = set(costs.scoring_methods) <= {costs.method}
    known = None not in (costs.cost_j, before.joules_per_answer, after.joules_per_answer)
    if not (is_one_meter and known):
        return None  # a bill is not divided by what another meter counts
    asked = (AnswerCost(side.joules_per_answer or 0.0, side.solved) for side in (before, after))
    return asdict(break_even(costs.cost_j or 0.0, *asked))


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a model card."""
    return page(Path(__file__).with_name("report.md.jinja"), **found, figures=_FIGURES)
