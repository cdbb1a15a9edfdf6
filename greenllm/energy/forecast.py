"""Offline estimates of energy and carbon: before a run, without a meter.

Contract: every result is an `Estimate` whose `method` starts with `estimated:` and whose
figures are intervals `low <= mid <= high`. Grams exist only with a named intensity; embodied
grams only where the hardware's figure and the time it was held are known. Unknown is None.

`estimate_hours` multiplies watts by time. Virtual CPUs use the SPECpower family figures. An
accelerator that runs all the time draws 69 % to 100 % of its rated power, the range ML.ENERGY
shows for one 700 W part between batch 8 and 512 (486 to 688 W). Where nobody published its idle
power, 5 % to 25 % of the rated power is assumed. The manufacture of an accelerator is its maker's
figure, without the server around it, over four years; makers give no interval, so it is divided and
multiplied by 1.6: 60 % is what EcoDiag (EcoInfo, CNRS) puts down to the life-cycle assessment of a
graphics card. For the H100 SXM that range also holds the 181 kg of ADEME's model for an A100 PCIe.
Other accelerators have no figure.

`estimate_gpu_tokens` uses a step model, `E_step(B) = E_fixed + e_marg * B`, that was fitted to
the public ML.ENERGY v3 figures of five dense models of 8 to 15 billion parameters (H100, bf16,
chat): the fixed part is their least-squares line in the model size, the marginal part the mean
of their joules per token and billion parameters. The low end halves the fixed part and takes
the cheapest marginal part; the high end takes the dearest one (long reasoning outputs) and
multiplies all by 2.4, the ratio between a whole service and its accelerators that Google
reports (arXiv:2508.15734). That range also holds the published wall-plug figures of an
RTX 4090 at batch 1 from 0.6 to 24 billion parameters. Prompt tokens cost `2 N` operations each,
at 0.58 TFLOP/J; part of that is in the marginal figure already, so the middle errs upwards.

`estimate_cpu_tokens` divides `2 N` operations per token by the rate one virtual CPU was seen to
reach (see the constants) and multiplies by the watts of one virtual CPU at full load.

Not covered: mixtures of experts, savings from low-bit weights (measured ones go both ways),
speculative decoding, long contexts beyond the interval, several GPUs per model, host power in
the middle of the GPU figures, and the uncertainty of a yearly grid intensity.
"""

import math
from dataclasses import dataclass
from typing import Self

from greenllm.energy.carbon.footprint import EmbodiedModel, operational_g
from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.hardware import Accelerator, VcpuPower
from greenllm.energy.units import (
    hours_to_seconds,
    kg_to_g,
    years_to_seconds,
)

ACCELERATOR_LIFETIME_YEARS = 4.0
ACCELERATOR_EMBODIED_SPREAD = 0.6
ACCELERATOR_EMBODIED = (
    f"the maker's figure over {ACCELERATOR_LIFETIME_YEARS:g} years; low and high are that divided"
    f" and multiplied by {1 + ACCELERATOR_EMBODIED_SPREAD:g}, after EcoDiag (EcoInfo, CNRS)"
)
ASSUMED_IDLE_SHARES = (0.05, 0.12, 0.25)
FULL_LOAD_SHARES = (0.69, 0.84, 1.0)

FITTED_SIZES_B = (8.0, 15.0)
FIXED_J_PER_STEP = 0.877
FIXED_J_PER_STEP_PER_B = 0.282
MARGINAL_J_PER_TOKEN_PER_B = (0.0061, 0.0100, 0.0241)
PREFILL_FLOP_PER_J = 0.58e12
LOW_FIXED_FACTOR = 0.5
SERVICE_FACTOR = 2.4
ASSUMED_BATCHES = (256, 8, 1)

# Seen by this project on two virtual CPUs of an AMD EPYC with AVX-512 and a model of 135 million
# parameters. Decoding: an int8 graph at batch 32, the geometric mean, transformers in bf16 at
# batch 1. Prompts: the int8 kernel, the fp32 kernel, transformers in bf16 at batch 32.
CPU_DECODE_FLOPS_PER_VCPU = (118e9, 16e9, 2.2e9)
CPU_PREFILL_FLOPS_PER_VCPU = (325e9, 72e9, 29e9)


@dataclass(frozen=True, slots=True)
class Interval:
    """A middle figure and the range around it that its method states."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and 0 <= self.low <= self.mid <= self.high):
            raise ValueError(f"an interval needs 0 <= low <= mid <= high, not {self}")

    @classmethod
    def around(cls, mid: float, relative: float) -> Self:
        """`mid` divided and multiplied by `1 + relative`: positive however wide."""
        return cls(mid / (1 + relative), mid, mid * (1 + relative))

    def times(self, factor: float) -> "Interval":
        """Every figure multiplied by one that is exact."""
        return Interval(self.low * factor, self.mid * factor, self.high * factor)

    def plus(self, other: "Interval") -> "Interval":
        """The sum when both err the same way."""
        return Interval(self.low + other.low, self.mid + other.mid, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the hardware stands.

    Args:
        intensity: grid intensity, None where unknown: then there are no grams.
        pue: power usage effectiveness, 1.0 for a machine outside a data centre.
    """

    intensity: Intensity | None
    pue: float

    def __post_init__(self) -> None:
        operational_g(0.0, self.pue, 0.0)

    def grams(self, it_j: Interval) -> Interval | None:
        """Operational grams of an energy used here."""
        if self.intensity is None:
            return None
        return it_j.times(operational_g(1.0, self.pue, self.intensity.g_per_kwh))


@dataclass(frozen=True, slots=True)
class Device:
    """Hardware that is held for some time.

    Args:
        label: what it is, for the method of the estimate.
        idle_w: watts when it does nothing.
        full_w: watts when it works all the time.
        embodied: carbon of its manufacture, None where unknown.
    """

    label: str
    idle_w: Interval
    full_w: Interval
    embodied: EmbodiedModel | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Energy and carbon of work that was not measured.

    Args:
        it_j: joules of the IT equipment.
        operational_g: grams from electricity, None without an intensity.
        embodied_g: grams from manufacture, None where unknown.
        method: how the figures came about; starts with `estimated:`.
        site: the intensity and PUE behind the grams.
        extrapolated: whether the model size is outside the fitted range.
    """

    it_j: Interval
    operational_g: Interval | None
    embodied_g: Interval | None
    method: str
    site: Site
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class TokenWork:
    """Tokens of one dense model.

    Args:
        parameters_b: parameters of the model, in billions.
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        batch: sequences decoded together, None where unknown.
    """

    parameters_b: float
    prompt_tokens: int
    completion_tokens: int
    batch: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.parameters_b) and self.parameters_b > 0):
            raise ValueError(f"parameters_b must be greater than 0, not {self.parameters_b}")
        if self.prompt_tokens < 0:
            raise ValueError(f"prompt_tokens must not be negative, not {self.prompt_tokens}")
        if self.completion_tokens < 0:
            raise ValueError(
                f"completion_tokens must not be negative, not {self.completion_tokens}"
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")

    @property
    def flop_per_token(self) -> float:
        """Operations of one forward pass, attention over the context left out."""
        return 2e9 * self.parameters_b


def vcpu_device(power: VcpuPower, num_vcpus: float) -> Device:
    """That many virtual CPUs of one family."""
    spread = power.relative_uncertainty
    return Device(
        label="vcpu-specpower-generic" if power.is_generic else "vcpu-specpower",
        idle_w=Interval.around(power.min_w, spread).times(num_vcpus),
        full_w=Interval.around(power.max_w, spread).times(num_vcpus),
        embodied=EmbodiedModel.per_vcpu(num_vcpus),
    )


def accelerator_device(accelerator: Accelerator, count: int = 1) -> Device:
    """That many accelerators of one kind, without the server around them."""
    known = accelerator.idle_w
    rated = Interval(*(share * accelerator.tdp_w for share in ASSUMED_IDLE_SHARES))
    idle_w = rated if known is None else Interval(known, known, known)
    full_w = Interval(*(max(share * accelerator.tdp_w, idle_w.low) for share in FULL_LOAD_SHARES))
    return Device(
        label="accelerator-rated-power",
        idle_w=idle_w.times(count),
        full_w=full_w.times(count),
        embodied=_accelerator_embodied(accelerator, count),
    )


def estimate_hours(time_h: float, device: Device, utilisation: float, site: Site) -> Estimate:
    """What holding a device for some hours costs at an average utilisation.

    Raises:
        ValueError: the time is negative or the utilisation outside 0 to 1.
    """
    if not (math.isfinite(time_h) and time_h >= 0):
        raise ValueError(f"time_h must be finite and not negative, not {time_h}")
    if not 0 <= utilisation <= 1:
        raise ValueError(f"utilisation must be from 0 to 1, not {utilisation}")
    time_s = hours_to_seconds(time_h)
    power_w = device.idle_w.times(1 - utilisation).plus(device.full_w.times(utilisation))
    it_j = power_w.times(time_s)
    embodied = None if device.embodied is None else _embodied(device.embodied, time_s)
    return Estimate(it_j, site.grams(it_j), embodied, f"estimated:{device.label}", site)


def estimate_gpu_tokens(work: TokenWork, site: Site) -> Estimate:
    """What tokens cost on a current data-centre GPU; the middle counts the GPU alone."""
    it_j = _decode_gpu(work).plus(_prefill_gpu(work))
    low, high = FITTED_SIZES_B
    return Estimate(
        it_j,
        site.grams(it_j),
        None,
        "estimated:gpu-step-model",
        site,
        extrapolated=not low <= work.parameters_b <= high,
    )


def estimate_cpu_tokens(work: TokenWork, power: VcpuPower, site: Site) -> Estimate:
    """What tokens cost on virtual CPUs; their number changes the time, not the energy."""
    watts = Interval.around(power.max_w, power.relative_uncertainty)
    decode = _cpu_joules(work, watts, CPU_DECODE_FLOPS_PER_VCPU).times(work.completion_tokens)
    prefill = _cpu_joules(work, watts, CPU_PREFILL_FLOPS_PER_VCPU).times(work.prompt_tokens)
    it_j = decode.plus(prefill)
    return Estimate(it_j, site.grams(it_j), None, "estimated:cpu-flops", site)


def _decode_gpu(work: TokenWork) -> Interval:
    step_j = FIXED_J_PER_STEP + FIXED_J_PER_STEP_PER_B * work.parameters_b
    batches = ASSUMED_BATCHES if work.batch is None else (work.batch,) * 3
    fixed_j = [step_j / batch for batch in batches]
    marginal_j = [rate * work.parameters_b for rate in MARGINAL_J_PER_TOKEN_PER_B]
    return Interval(
        LOW_FIXED_FACTOR * fixed_j[0] + marginal_j[0],
        fixed_j[1] + marginal_j[1],
        SERVICE_FACTOR * (fixed_j[2] + marginal_j[2]),
    ).times(work.completion_tokens)


def _prefill_gpu(work: TokenWork) -> Interval:
    per_token_j = work.flop_per_token / PREFILL_FLOP_PER_J
    factors = Interval(LOW_FIXED_FACTOR, 1.0, SERVICE_FACTOR)
    return factors.times(per_token_j * work.prompt_tokens)


def _cpu_joules(work: TokenWork, watts: Interval, rates: tuple[float, float, float]) -> Interval:
    fast, usual, slow = (work.flop_per_token / rate for rate in rates)
    return Interval(watts.low * fast, watts.mid * usual, watts.high * slow)


def _accelerator_embodied(accelerator: Accelerator, count: int) -> EmbodiedModel | None:
    if accelerator.embodied_kg is None:
        return None
    total_g = kg_to_g(accelerator.embodied_kg) * count
    total = Interval.around(total_g, ACCELERATOR_EMBODIED_SPREAD)
    lifetime_s = years_to_seconds(ACCELERATOR_LIFETIME_YEARS)
    return EmbodiedModel(total.mid, total.low, total.high, lifetime_s, accelerator.source)


def _embodied(model: EmbodiedModel, time_s: float) -> Interval:
    spent = time_s / model.lifetime_s
    return Interval(model.low_g, model.total_g, model.high_g).times(spent)
