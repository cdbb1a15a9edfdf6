"""The score card of a compression, from its `compression.json`.

Contract: as `reading`; the energy is that of making the smaller model, the quality is the smaller
model's, beside what it was before. Reports of older versions have no grams.

Not covered: embodied grams, FLOPs, factors that were only measured.
"""

from __future__ import annotations

from greenllm.scorecard.card import (
    VERSION,
    Card,
    Energy,
    Flops,
    Identity,
    ModelSize,
    Part,
    Quality,
)
from greenllm.scorecard.card import Figure as Before
from greenllm.scorecard.document import (
    Document,
    count,
    flag,
    needed,
    number,
    part,
    require_schema,
    text,
    versions,
)
from greenllm.scorecard.grams import carbon_of

_SCHEMA = 1
_NOTES = (
    "scoring both models is not in the energy",
    "what the model was trained with before is not in it",
    "FLOPs are not counted",
    "grams are those of the electricity; the hardware's manufacture is not in them",
    "answers count as right if a task says so; other tasks may have lost more",
)


def card_of_compression(report: Document) -> Card:
    """The card.

    Raises:
        ConfigError: a part is missing or of another kind.
    """
    require_schema(report, _SCHEMA)
    before, after, costs = (part(report, name) for name in ("before", "after", "costs"))
    seconds, total_j = number(costs, "duration_s"), number(costs, "cost_j")
    return Card(
        version=VERSION,
        identity=_identity(part(report, "identity")),
        running_time_s=seconds,
        model=ModelSize(count(after, "parameters"), None, count(after, "weight_bytes")),
        flops=Flops(None, None),
        power_w=total_j / seconds if total_j is not None and seconds else None,
        energy=_energy(costs),
        carbon=carbon_of(part(report, "carbon") if "carbon" in report else {}),
        quality=(_quality(part(before, "solved"), part(after, "solved")),),
        notes=_NOTES,
    )


def _identity(found: Document) -> Identity:
    return Identity(
        what="compression",
        status="completed",
        command=text(found, "command"),
        began=text(found, "began"),
        model=needed(found, "base"),
        model_digest=None,
        method=text(found, "method"),
        machine=text(found, "machine"),
        versions=versions(found),
    )


def _energy(costs: Document) -> Energy:
    phases = part(costs, "by_phase")
    return Energy(
        total_j=number(costs, "cost_j"),
        tokens=None,
        tokens_are="no tokens: the whole of making the smaller model",
        joules_per_token=None,
        wh_per_1000_requests=None,
        method=text(costs, "method"),
        measured=flag(costs, "measured"),
        uncertainty=number(costs, "uncertainty"),
        parts=tuple(Part(name, number(phases, name), None, None, None) for name in phases),
    )


def _quality(before: Document, after: Document) -> Quality:
    one, other = (
        Before(number(f, "value"), number(f, "low"), number(f, "high"), count(f, "examples"))
        for f in (before, after)
    )
    return Quality(
        "right answers", "accuracy", "the tasks it was scored on", other.value, other.low,
        other.high, other.examples, None, one,
    )  # fmt: skip
