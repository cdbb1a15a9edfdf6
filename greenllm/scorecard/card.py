"""The green score card of a run: what was run, its six measures, its quality, what is left out.

Contract: values only, the one source of the published JSON Schema (`schema.py`). Unknown is None,
never 0. Names carry units: `_j` joules, `_s` seconds, `_w` watts, `_g` grams of CO2 equivalent.
Values are checked where a card is made from a report and where it leaves, not in between.

Source: the six measures are those of `green_report.json`; watt-hours per 1,000 requests is the unit
of the AI Energy Score (huggingface.github.io/AIEnergyScore), whose stars are not given: they rank
models on one GPU and one set of questions.

Not covered: what was spent before the run; water; the card of a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from greenllm.energy.units import joules_to_wh

VERSION: Literal["1.0"] = "1.0"
# The whole vocabulary, so that a new command needs no new schema.
What = Literal["fine-tuning", "pre-training", "evaluation", "compression"]


def told(description: str, **limits: float) -> Any:
    """Declare a field with its description and limits, in pydantic's words: `ge` is the least."""
    return field(metadata={"description": description, **limits})


@dataclass(frozen=True, slots=True)
class Identity:
    """What was run, when, with what and where."""

    what: What = told("Kind of run.")
    status: str | None = told("How it ended, as 'completed'.")
    command: str | None = told("Command line that runs it again; keys are masked.")
    began: str | None = told("When it began, ISO 8601.")
    model: str = told("The model that was asked, or the base of what was made.")
    model_digest: str | None = told("Digest of that model's files.")
    method: str | None = told("How it was made, as 'lora' or 'prune'.")
    machine: str | None = told("The machine that did the work: processors and GPUs.")
    versions: Mapping[str, str] | None = told("Versions of the software, by package.")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """How large the model is."""

    parameters: int | None = told("Parameters of the model, or of the base.", ge=0)
    trained: int | None = told("Parameters that were trained.", ge=0)
    written_bytes: int | None = told("Size of the weights that were written.", ge=0)


@dataclass(frozen=True, slots=True)
class Flops:
    """Arithmetic of the run."""

    value: float | None = told("Floating point operations.", ge=0)
    method: str | None = told("How they were found.")


@dataclass(frozen=True, slots=True)
class Part:
    """A phase of training, or a task of an evaluation."""

    name: str = told("Phase or task.")
    energy_j: float | None = told("Joules of this part, idle share included.", ge=0)
    duration_s: float | None = told("Seconds of this part.", ge=0)
    requests: int | None = told("Examples that were answered.", ge=0)
    wh_per_1000_requests: float | None = told("Watt-hours of 1,000 such requests.", ge=0)


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of the run and of its parts."""

    total_j: float | None = told("Joules that the run is billed for.", ge=0)
    tokens: int | None = told("Tokens that the joules per token are of.", ge=0)
    tokens_are: str = told("Which tokens those are.")
    joules_per_token: float | None = told("Joules of one of them.", ge=0)
    wh_per_1000_requests: float | None = told("Watt-hours of 1,000 requests.", ge=0)
    method: str | None = told("The meter.")
    measured: bool | None = told("Whether all of it was measured; else it was modelled.")
    uncertainty: float | None = told("Relative uncertainty of the meter.", ge=0)
    parts: tuple[Part, ...] = told("Energy by phase or task; not all parts need be billed.")


@dataclass(frozen=True, slots=True)
class Carbon:
    """Grams of CO2 equivalent, and what they rest on."""

    operational_g: float | None = told("Grams of the electricity.", ge=0)
    embodied_g: float | None = told("Share of the grams of the hardware's manufacture.", ge=0)
    total_g: float | None = told("Both; null where either is unknown.", ge=0)
    intensity_g_per_kwh: float | None = told("Grid intensity, grams per kWh.", ge=0)
    intensity_zone: str | None = told("Zone of that grid.")
    intensity_source: str | None = told("Who published it.")
    intensity_year: int | None = told("Year that the intensity is of.")
    pue: float | None = told("Power usage effectiveness of the site.", ge=1)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval; an end without bound is null."""

    value: float | None = told("The figure; null where it is no finite number.")
    low: float | None = told("Low end of its 95 % interval.")
    high: float | None = told("High end of its 95 % interval.")
    examples: int | None = told("Examples it was found on.", ge=0)


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the model is at something."""

    name: str = told("What was looked at: a task, or a figure of training.")
    measure: str = told("What the figure means, as 'accuracy' or 'nats per token'.")
    data: str = told("The examples.")
    value: float | None = told("The figure; null where it is no finite number.")
    low: float | None = told("Low end of its 95 % interval.")
    high: float | None = told("High end of its 95 % interval.")
    examples: int | None = told("Examples it was found on.", ge=0)
    chance: float | None = told("What guessing would get.")
    before: Figure | None = told("The same before training or compressing.")


@dataclass(frozen=True, slots=True)
class Card:
    """The green score card of one run. Unknown is null, never 0."""

    # For pydantic, of the whole card: no other fields, no conversions, no NaN and no infinities.
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "revalidate_instances": "always",
    }
    version: Literal["1.0"] = told("Version of this form.")
    identity: Identity = told("What was run.")
    running_time_s: float | None = told("Seconds that the joules are of.", ge=0)
    model: ModelSize = told("Model size.")
    flops: Flops = told("Arithmetic.")
    power_w: float | None = told("Mean power, watts.", ge=0)
    energy: Energy = told("Energy.")
    carbon: Carbon = told("Carbon.")
    quality: tuple[Quality, ...] = told("What the model is worth.")
    notes: tuple[str, ...] = told("What the figures do not cover.")


def wh_per_1000_requests(energy_j: float | None, requests: int | None) -> float | None:
    """Watt-hours of 1,000 requests such as these; None without joules or requests."""
    if energy_j is None or not requests:
        return None
    return joules_to_wh(energy_j) * 1000 / requests
