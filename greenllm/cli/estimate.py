"""`greenllm estimate`: energy and carbon before anything runs.

Contract: prints a middle figure and an interval with the method behind them; grams are those of the
world unless a zone is given, as for `greenllm serve`, and the source and year are named. An option
that would be ignored is refused. Every mistake is one line. Not covered: what
`greenllm.energy.forecast` does not cover; several machines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from greenllm.config import ConfigError, Options, option
from greenllm.energy.carbon.policy import intensity_source
from greenllm.energy.forecast import (
    ACCELERATOR_EMBODIED,
    FITTED_SIZES_B,
    Estimate,
    Site,
    TokenWork,
    accelerator_device,
    estimate_cpu_tokens,
    estimate_gpu_tokens,
    estimate_hours,
    vcpu_device,
)
from greenllm.energy.hardware import (
    Accelerator,
    CpuInfo,
    VcpuPower,
    accelerator,
    accelerators,
    read_cpu_info,
    vcpu_power,
)
from greenllm.energy.units import joules_to_wh
from greenllm.figures import make_console, make_table, number, print_table
from greenllm.options import CarbonOptions

CPU = "cpu"
_PROCESSORS = ("EPYC", "Xeon")


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(CarbonOptions):
    """What is to be estimated: hours of hardware, or tokens of a model."""

    panel = Options.panel

    hours: float | None = option(None, "Hours of use (with --hardware).")
    hardware: str = option(CPU, "'cpu' (this machine's), or a GPU such as 'H100 SXM'.")
    vcpus: int | None = option(None, "vCPUs, for --hardware cpu.")
    utilisation: float = option(0.5, "Mean load, 0 to 1.")
    parameters_b: float | None = option(None, "Model size in billions of parameters.")
    prompt_tokens: int = option(0, "Prompt tokens.")
    completion_tokens: int = option(0, "Generated tokens.")

    def __post_init__(self) -> None:
        super().__post_init__()
        num_tokens = self.prompt_tokens + self.completion_tokens
        if (self.hours is None) == (self.parameters_b is None):
            raise ConfigError(
                "give exactly one of --hours (of --hardware) and --parameters-b (tokens)"
            )
        if self.hours is not None and num_tokens:
            raise ConfigError("tokens go with --parameters-b, not with --hours")
        if self.parameters_b is not None and not num_tokens:
            raise ConfigError("--parameters-b needs --prompt-tokens or --completion-tokens")
        if self.vcpus is not None and (self.hours is None or self.hardware != CPU):
            raise ConfigError("--vcpus goes with --hours and --hardware cpu", "vcpus")
        self.require(self.vcpus is None or self.vcpus >= 1, "vcpus", "must be at least 1")
        self.require_above_zero("hours", "parameters_b")


@dataclass(frozen=True)
class Forecast:
    """An estimate, what it is of, and what else is to be said about it."""

    subject: str
    estimate: Estimate
    notes: tuple[str, ...]


def estimate(question: EstimateOptions) -> None:
    """Print an estimate.

    Raises:
        ConfigError: an option is wrong, missing or would be ignored.
    """
    try:
        answer = answer_to(question, read_cpu_info())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print_answer(make_console(), question, answer)


def answer_to(question: EstimateOptions, cpu: CpuInfo) -> Forecast:
    """Estimate for the hardware named, or for this machine's processor.

    Raises:
        ValueError: an unknown zone or GPU, or a figure out of its range.
    """
    site = Site(intensity_source(question).intensity(time.time()), question.pue)
    gpu = None if question.hardware == CPU else find_accelerator(question.hardware)
    if question.hours is None:
        return _tokens(question, gpu, vcpu_power(cpu), site)
    return _hours(question, gpu, cpu, site)


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of that name; its maker may be left out.

    Raises:
        ValueError: none has it.
    """
    wanted = name.strip().casefold()
    known = {item.name.casefold(): item for item in accelerators()}
    for full, item in known.items():
        if wanted in (full, full.partition(" ")[2]):
            return item
    similar = [item.name for full, item in known.items() if wanted and wanted in full]
    if similar:
        raise ConfigError(f"--hardware {name!r}: did you mean {', '.join(similar)}?")
    return accelerator(name)


def _hours(
    question: EstimateOptions, gpu: Accelerator | None, cpu: CpuInfo, site: Site
) -> Forecast:
    if gpu is None:
        power, num_vcpus = vcpu_power(cpu), question.vcpus or cpu.num_vcpus
        device, name, notes = vcpu_device(power, num_vcpus), f"{num_vcpus} vCPUs", _cpu_notes(power)
    else:
        device, name, notes = accelerator_device(gpu), gpu.name, (
            f"{gpu.name}: rated {gpu.tdp_w:g} W ({gpu.source}); the server around it is not"
            " counted, neither its power nor its manufacture",
        )  # fmt: skip
    estimate = estimate_hours(question.hours or 0.0, device, question.utilisation, site)
    if gpu is not None and estimate.embodied_g is not None:
        notes = (*notes, f"manufacture: {ACCELERATOR_EMBODIED}")
    return Forecast(
        f"{question.hours:g} h of {name} at {question.utilisation:.0%} load", estimate, notes
    )


def _tokens(
    question: EstimateOptions, gpu: Accelerator | None, power: VcpuPower, site: Site
) -> Forecast:
    prompt, completion = question.prompt_tokens, question.completion_tokens
    work = TokenWork(question.parameters_b or 0.0, prompt, completion)
    subject = (
        f"{prompt:,} prompt and {completion:,} completion tokens of {question.parameters_b:g}"
        " billion parameters on"
    )
    if gpu is None:
        return Forecast(
            f"{subject} CPUs", estimate_cpu_tokens(work, power, site), _cpu_notes(power)
        )
    if any(word in gpu.name for word in _PROCESSORS):
        raise ConfigError("tokens are estimated for a GPU, or for --hardware cpu")
    estimate = estimate_gpu_tokens(work, site)
    notes = ["the step model was fitted on an H100; which GPU it is does not enter"]
    if estimate.extrapolated:
        low, high = FITTED_SIZES_B
        notes.append(f"extrapolated: the model was fitted from {low:g} to {high:g} billion")
    return Forecast(f"{subject} a GPU", estimate, tuple(notes))


def _cpu_notes(power: VcpuPower) -> tuple[str, ...]:
    if power.is_generic:
        return (f"this CPU was not recognised: generic watts per vCPU ({power.source})",)
    return (f"watts per vCPU of {power.family} ({power.source})",)


def print_answer(console: Console, question: EstimateOptions, answer: Forecast) -> None:
    """Print the figures, and what they rest on."""
    estimate = answer.estimate
    print_table(console, f"Estimate: {answer.subject}", figures_table(estimate))
    console.print(f"method: {estimate.method}")
    intensity = estimate.site.intensity
    if intensity is not None:
        year = "" if intensity.year is None else f", {intensity.year}"
        where = f"{intensity.name} ({intensity.source}{year})"
        console.print(f"intensity: {intensity.g_per_kwh:g} g/kWh, {where}", soft_wrap=True)
        console.print(f"PUE: {estimate.site.pue:g}; it enters the grams only")
    if estimate.embodied_g is None:
        unknown = "the time the hardware is held" if question.hours is None else "its manufacture"
        console.print(f"embodied carbon: unknown, because {unknown} is")
    for note in answer.notes:
        console.print(f"note: {note}", soft_wrap=True)


def figures_table(estimate: Estimate) -> Table:
    """Energy and grams: middle, low and high."""
    table = make_table(("", "mid", "low", "high"))
    rows = (
        ("energy, J", estimate.it_j),
        ("energy, Wh", estimate.it_j.times(joules_to_wh(1.0))),
        ("carbon of electricity, gCO2e", estimate.operational_g),
        ("carbon of manufacture, gCO2e", estimate.embodied_g),
    )
    for name, interval in rows:
        ends = (None,) * 3 if interval is None else (interval.mid, interval.low, interval.high)
        table.add_row(name, *map(number, ends))
    return table
