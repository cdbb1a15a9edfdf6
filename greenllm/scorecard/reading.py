"""Score cards from what the commands write: a fine-tune's report, an evaluation's result.

Contract: pure. What a file does not say is None, as is a number that is not finite; a document of
another kind, or with a value of another type, is a `ConfigError` that names the place.

Not covered: cards themselves as input; reports of `greenllm tune`.
"""

from __future__ import annotations

from collections.abc import Mapping

from greenllm.config import ConfigError
from greenllm.scorecard.card import (
    VERSION,
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
from greenllm.scorecard.compressed import card_of_compression
from greenllm.scorecard.document import (
    Document,
    count,
    flag,
    needed,
    number,
    part,
    require_schema,
    text,
    texts,
    total,
    total_count,
    versions,
)
from greenllm.scorecard.grams import carbon_of

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
    require_schema(report, _SCHEMA)
    measures = part(report, "measures")
    size, flops = part(measures, "model"), part(measures, "flops")
    return Card(
        version=VERSION,
        identity=_trained(report),
        running_time_s=number(measures, "running_time_s"),
        model=ModelSize(
            count(size, "parameters"), count(size, "trained"), count(size, "output_bytes")
        ),
        flops=Flops(number(flops, "value"), text(flops, "method")),
        power_w=number(measures, "power_w"),
        energy=_training_energy(measures, part(report, "training")),
        carbon=carbon_of(part(measures, "carbon")),
        quality=_looks(part(report, "quality")),
        notes=_TRAINING_NOTES,
    )


def _trained(report: Document) -> Identity:
    identity, recipe = part(report, "identity"), part(report, "recipe")
    return Identity(
        what="fine-tuning",
        status=text(report, "status"),
        command=text(identity, "command"),
        began=text(identity, "began"),
        model=needed(recipe, "model"),
        model_digest=text(identity, "base_digest"),
        method=text(recipe, "method"),
        machine=text(identity, "machine"),
        versions=versions(identity),
    )


def _training_energy(measures: Document, training: Document) -> Energy:
    found = part(measures, "energy")
    phases = part(found, "by_phase")
    parts = tuple(_phase(name, phases) for name in phases)
    return Energy(
        total_j=number(found, "total_j"),
        tokens=count(training, "tokens"),
        tokens_are="tokens trained on",
        joules_per_token=number(found, "joules_per_training_token"),
        wh_per_1000_requests=None,
        method=text(found, "method"),
        measured=flag(found, "measured"),
        uncertainty=number(found, "uncertainty"),
        parts=parts,
    )


def _phase(name: str, phases: Document) -> Part:
    found = {} if phases[name] is None else part(phases, name)
    return Part(name, number(found, "total_j"), number(found, "duration_s"), None, None)


def _looks(found: Document) -> tuple[Quality, ...]:
    """What was looked at after training; what was not measured is left out."""
    exits = part(found, "exits")
    pairs = [(name, measure, data, found.get(name)) for name, measure, data in _LOOKS]
    pairs += [(f"exit_{n}", "agreement", _HELD_OUT, pair) for n, pair in exits.items()]
    return tuple(
        _look(name, measure, data, pair)
        for name, measure, data, pair in pairs
        if isinstance(pair, Mapping) and pair.get("after") is not None
    )


def _look(name: str, measure: str, data: str, pair: Document) -> Quality:
    after = _figure(part(pair, "after"))
    before = None if pair.get("before") is None else _figure(part(pair, "before"))
    return Quality(
        name, measure, data, after.value, after.low, after.high, after.examples, None, before
    )


def card_of_evaluation(result: Document) -> Card:
    """The card of an evaluation's `evaluation.json`.

    Raises:
        ConfigError: a part is missing or of another kind.
    """
    require_schema(result, _SCHEMA)
    tasks = part(result, "tasks")
    rows = {name: part(tasks, name) for name in tasks}
    basis = part(result, "basis") if "basis" in result else {}
    energy = _asked_energy(rows, part(result, "energy"), basis)
    seconds = total([number(task, "duration_s") for task in rows.values()])
    watts = energy.total_j / seconds if energy.total_j is not None and seconds else None
    flops = number(basis, "flops")
    return Card(
        version=VERSION,
        identity=_asked(result),
        running_time_s=seconds,
        model=ModelSize(None, None, None),
        flops=Flops(flops, None if flops is None else "counted by the server, per request"),
        power_w=watts,
        energy=energy,
        carbon=carbon_of(basis),
        quality=tuple(_task_quality(name, task) for name, task in rows.items()),
        notes=_EVALUATION_NOTES,
    )


def _asked(result: Document) -> Identity:
    identity = part(result, "identity") if "identity" in result else {}
    return Identity(
        what="evaluation",
        status=None,
        command=text(identity, "command"),
        began=text(identity, "began"),
        model=needed(result, "model"),
        model_digest=None,
        method=None,
        machine=text(identity, "machine"),
        versions=versions(identity),
    )


def _asked_energy(rows: Mapping[str, Document], how: Document, basis: Document) -> Energy:
    parts = tuple(_task_part(name, task) for name, task in rows.items())
    total_j = total([one.energy_j for one in parts])
    tokens = total_count([count(task, "tokens") for task in rows.values()])
    requests = total_count([one.requests for one in parts])
    return Energy(
        total_j=total_j,
        tokens=tokens,
        tokens_are="tokens of prompts and answers",
        joules_per_token=total_j / tokens if total_j is not None and tokens else None,
        wh_per_1000_requests=wh_per_1000_requests(total_j, requests),
        method=", ".join(texts(how, "methods")) or None,
        measured=flag(how, "measured"),
        uncertainty=number(basis, "uncertainty") if total_j is not None else None,
        parts=parts,
    )


def _task_part(name: str, task: Document) -> Part:
    examples, refused = count(part(task, "value"), "examples"), count(task, "refused")
    requests = None if examples is None or refused is None else examples - refused
    energy_j = number(task, "energy_j")
    return Part(
        name,
        energy_j,
        number(task, "duration_s"),
        requests,
        wh_per_1000_requests(energy_j, requests),
    )


def _task_quality(name: str, task: Document) -> Quality:
    figure = _figure(part(task, "value"))
    return Quality(
        name=name,
        measure=needed(task, "measure"),
        data=name,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        examples=figure.examples,
        chance=number(task, "chance"),
        before=None,
    )


def _figure(found: Document) -> Figure:
    low, high = number(found, "low"), number(found, "high")
    return Figure(number(found, "value"), low, high, count(found, "examples"))
