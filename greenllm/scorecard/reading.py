"""Score cards from what `greenllm finetune`, `greenllm eval` and `greenllm compress` write.

Contract: pure. What a file does not say is None, as is a number that is not finite; a document of
another kind, or with a value of another type, is a `ConfigError` that names the place.

Not covered: cards themselves as input; reports of `greenllm tune`; a compression's FLOPs and
embodied grams.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from greenllm.config import ConfigError
from greenllm.scorecard.card import (
    VERSION,
    Carbon,
    Card,
    Energy,
    Figure,
    Flops,
    Identity,
    ModelSize,
    Part,
    Quality,
    wh_per_1000_requests,
)
from greenllm.scorecard.schema import card_from

Document = Mapping[str, Any]
_SCHEMA = 1
_HELD_OUT = "held-out examples"
_LOOKS = (
    ("validation_loss", "nats per token", _HELD_OUT),
    ("exact_match", "accuracy", _HELD_OUT),
    ("preferred", "accuracy", _HELD_OUT),
    ("probe_loss", "nats per token", "text that training did not touch"),
)
_TRAINING_NOTES = (
    "what was spent before the run, on the base model or on trials by hand, is not in it",
    "phases 'waiting' and 'compare' are not billed: they are parts, but not in the total",
    "joules per token are of training alone, the total is of everything from loading to saving",
    "FLOPs are of the tokens trained on, without attention: those of trials and of evaluation are"
    " left out, though their joules are in the total",
)
_EVALUATION_NOTES = (
    "joules are sums of the requests' own receipts; a server that idles between them is not in it",
    "examples that were refused count as wrong, and cost nothing here",
    "watt-hours per 1,000 requests are of these questions on this machine, idle share included:"
    " not comparable with leaderboards that measure one GPU",
    "the model's parameters and size are not known to an evaluation",
)
_COMPRESSION_NOTES = (
    "scoring both models is not in the energy",
    "what the model was trained with before is not in it",
    "FLOPs are not counted",
    "grams are those of the electricity; the hardware's manufacture is not in them",
    "answers count as right if a task says so; other tasks may have lost more",
)


def card_of(document: Document) -> Card:
    """The card of whatever was written.

    Raises:
        ConfigError: it is nothing that a command here writes.
    """
    if "measures" in document and "recipe" in document:
        return card_of_finetune(document)
    if "tasks" in document and "energy" in document:
        return card_of_evaluation(document)
    if document.get("kind") == "compression":
        return card_of_compression(document)
    raise ConfigError(
        "it is none of the green_report.json of greenllm finetune, the evaluation.json of greenllm"
        " eval and the compression.json of greenllm compress"
    )


def card_of_finetune(report: Document) -> Card:
    """The card of a fine-tune's `green_report.json`.

    Raises:
        ConfigError: a part is missing or of another kind.
    """
    report = _readable(report)
    recipe, training = _part(report, "recipe"), _part(report, "training")
    measures, identity = _part(report, "measures"), _part(report, "identity")
    size, energy = _part(measures, "model"), _part(measures, "energy")
    phases = _part(energy, "by_phase")
    spent = {name: {} if found is None else _part(phases, name) for name, found in phases.items()}
    return _card(
        identity=_pick(
            Identity, identity, what="fine-tuning", status=report.get("status"),
            model=recipe.get("model"), method=recipe.get("method"),
            model_digest=identity.get("base_digest"),
        ),
        running_time_s=measures.get("running_time_s"),
        model=_pick(ModelSize, size, written_bytes=size.get("output_bytes")),
        flops=_pick(Flops, _part(measures, "flops")),
        power_w=measures.get("power_w"),
        energy=_pick(
            Energy, energy, tokens=training.get("tokens"), tokens_are="tokens trained on",
            joules_per_token=energy.get("joules_per_training_token"),
            parts=[_spent(name, one.get("total_j"), one) for name, one in spent.items()],
        ),
        carbon=_pick(Carbon, _part(measures, "carbon")),
        quality=_looks(_part(report, "quality")),
        notes=_TRAINING_NOTES,
    )  # fmt: skip


def _looks(found: Document) -> list[Document]:
    """What was looked at after training; what was not measured is left out."""
    looks = [(name, measure, data, found.get(name)) for name, measure, data in _LOOKS]
    exits = _part(found, "exits")
    looks += [(f"exit_{n}", "agreement", _HELD_OUT, pair) for n, pair in exits.items()]
    return [
        _quality(name, measure, data, _part(pair, "after"), pair.get("before"))
        for name, measure, data, pair in looks
        if isinstance(pair, Mapping) and pair.get("after") is not None
    ]


def card_of_evaluation(result: Document) -> Card:
    """The card of an evaluation's `evaluation.json`.

    Raises:
        ConfigError: a part is missing or of another kind.
    """
    result = _readable(result)
    tasks, how = _part(result, "tasks"), _part(result, "energy")
    rows = {name: _part(tasks, name) for name in tasks}
    basis, identity = (_part(result, n) if n in result else {} for n in ("basis", "identity"))
    parts = [_answered(name, task) for name, task in rows.items()]
    total_j, requests = (_total(one[n] for one in parts) for n in ("energy_j", "requests"))
    seconds, tokens = (
        _total(_number(row, n) for row in rows.values()) for n in ("duration_s", "tokens")
    )
    counted = None if basis.get("flops") is None else "counted by the server, per request"
    return _card(
        identity=_pick(Identity, identity, what="evaluation", model=result.get("model")),
        running_time_s=seconds,
        flops={"value": basis.get("flops"), "method": counted},
        power_w=_ratio(total_j, seconds),
        energy=_pick(
            Energy, how, total_j=total_j, tokens=tokens, tokens_are="tokens of prompts and answers",
            joules_per_token=_ratio(total_j, tokens),
            wh_per_1000_requests=wh_per_1000_requests(total_j, requests),
            method=", ".join(_texts(how, "methods")) or None,
            uncertainty=None if total_j is None else basis.get("uncertainty"), parts=parts,
        ),
        carbon=_pick(Carbon, basis),
        quality=[
            _quality(name, task.get("measure"), name, _part(task, "value"),
                     chance=task.get("chance"))
            for name, task in rows.items()
        ],
        notes=_EVALUATION_NOTES,
    )  # fmt: skip


def _answered(name: str, task: Document) -> Document:
    """Joules of a task, by requests that were answered: refused ones cost nothing."""
    answered = [_number(_part(task, "value"), "examples"), _number(task, "refused")]
    requests = None if None in answered else answered[0] - answered[1]
    energy_j = _number(task, "energy_j")
    wh = wh_per_1000_requests(energy_j, requests)
    return _spent(name, energy_j, task, requests=requests, wh_per_1000_requests=wh)


def card_of_compression(report: Document) -> Card:
    """The card of a compression's `compression.json`.

    The energy is that of making the smaller model; the quality is the smaller model's, beside what
    it was before. Reports of older versions have no grams.

    Raises:
        ConfigError: a part is missing or of another kind.
    """
    report = _readable(report)
    before, after, costs = (_part(report, name) for name in ("before", "after", "costs"))
    identity, phases = _part(report, "identity"), _part(costs, "by_phase")
    return _card(
        identity=_pick(
            Identity, identity, what="compression", status="completed", model=identity.get("base")
        ),
        running_time_s=costs.get("duration_s"),
        model=_pick(ModelSize, after, written_bytes=after.get("weight_bytes")),
        power_w=_ratio(_number(costs, "cost_j"), _number(costs, "duration_s")),
        energy=_pick(
            Energy, costs, total_j=costs.get("cost_j"),
            tokens_are="no tokens: the whole of making the smaller model",
            parts=[_spent(name, energy_j, {}) for name, energy_j in phases.items()],
        ),
        carbon=_pick(Carbon, _part(report, "carbon") if "carbon" in report else {}),
        quality=[
            _quality("right answers", "accuracy", "the tasks it was scored on",
                     _part(after, "solved"), _part(before, "solved"))
        ],
        notes=_COMPRESSION_NOTES,
    )  # fmt: skip


def _card(**parts: Any) -> Card:
    """A card; what a report does not have is unknown."""
    return card_from(
        {"version": VERSION, "model": _pick(ModelSize, {}), "flops": _pick(Flops, {}), **parts}
    )


def _pick(kind: type[Any], found: Document, **values: Any) -> dict[str, Any]:
    """The fields of a part of the card: values given, or what the report has by the same name."""
    return {spec.name: values.get(spec.name, found.get(spec.name)) for spec in fields(kind)}


def _spent(name: str, energy_j: Any, found: Document, **values: Any) -> dict[str, Any]:
    return _pick(Part, found, name=name, energy_j=energy_j, **values)


def _quality(
    name: str, measure: Any, data: str, figure: Document, before: Any = None, **values: Any
) -> dict[str, Any]:
    before = None if before is None else _pick(Figure, _part({"before": before}, "before"))
    return _pick(Quality, figure, name=name, measure=measure, data=data, before=before, **values)


def _readable(document: Document) -> Document:
    """The document as JSON has it, NaN and infinities as null; other versions are refused."""
    found: Document = json.loads(json.dumps(document), parse_constant=lambda _: None)
    if found.get("schema") != _SCHEMA:
        raise ConfigError(
            f"its schema is {found.get('schema')!r}, and this version of greenllm reads {_SCHEMA}:"
            " upgrade greenllm, or make the report again"
        )
    return found


def _part(found: Document, name: str) -> Document:
    """An object that must be there."""
    value = found.get(name)
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object")
    return value


def _texts(found: Document, name: str) -> list[str]:
    value = found.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, value, "a list of texts")
    return value


def _number(found: Document, name: str) -> Any:
    """A number that is computed with before the card is checked."""
    value = found.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise _wrong(name, value, "a number")
    return value


def _total(values: Iterable[Any]) -> Any:
    """The sum; unknown where one is, or where there is nothing to add."""
    known = list(values)
    return None if None in known or not known else sum(known)


def _ratio(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def _wrong(name: str, value: Any, wanted: str) -> ConfigError:
    what = "missing" if value is None else repr(value)[:40]
    return ConfigError(f"its {name!r} is {what}, not {wanted}")
