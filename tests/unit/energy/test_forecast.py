"""Estimates are ordered intervals that grow with the work and hold published measurements."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.forecast import (
    FIXED_J_PER_STEP,
    FIXED_J_PER_STEP_PER_B,
    MARGINAL_J_PER_TOKEN_PER_B,
    Device,
    Estimate,
    Interval,
    Site,
    TokenWork,
    accelerator_device,
    estimate_cpu_tokens,
    estimate_gpu_tokens,
    estimate_hours,
    vcpu_device,
)
from greenllm.energy.hardware import Accelerator, CpuInfo, accelerator, accelerators, vcpu_power

WORLD = Intensity(450.0, "WORLD", "World", 2025, "a source", "CC BY 4.0")
SITE = Site(WORLD, 1.2)
NOWHERE = Site(None, 1.2)
MILAN = vcpu_power(CpuInfo("AuthenticAMD", 25, 1, "AMD EPYC", 2))
GENERIC = vcpu_power(CpuInfo("unknown", None, None, "", 2))
VCPUS = vcpu_device(MILAN, 2)
H100 = accelerator_device(accelerator("NVIDIA H100 SXM"))
sizes = st.floats(0.001, 500)
tokens = st.integers(0, 10**7)
batches = st.none() | st.integers(1, 512)
devices = st.sampled_from([VCPUS, H100, accelerator_device(accelerator("NVIDIA L4"), 3)])
# Parameters in billions, joules per step and joules per token: ML.ENERGY v3 on an H100, refitted.
PUBLISHED_FITS = [
    (8.03, 3.16, 0.0665),
    (8.19, 3.04, 0.0692),
    (12.2, 4.56, 0.1301),
    (14.8, 4.90, 0.0910),
    (8.89, 3.42, 0.1473),
]


def _per_token_j(parameters_b: float, batch: int | None) -> Interval:
    return estimate_gpu_tokens(TokenWork(parameters_b, 0, 1, batch), NOWHERE).it_j


def _ordered(interval: Interval) -> bool:
    return 0 <= interval.low <= interval.mid <= interval.high


@given(st.floats(0, 1e4), devices, st.floats(0, 1))
def test_hours_give_ordered_intervals(time_h: float, device: Device, utilisation: float) -> None:
    estimate = estimate_hours(time_h, device, utilisation, SITE)
    assert _ordered(estimate.it_j)
    assert estimate.operational_g is not None
    assert _ordered(estimate.operational_g)
    assert estimate.method.startswith("estimated:")


@given(st.floats(0, 1e4), st.floats(0, 1e4), devices, st.floats(0, 1), st.floats(0, 1))
def test_hours_grow_with_time_and_utilisation(
    one_h: float, other_h: float, device: Device, one: float, other: float
) -> None:
    (low_h, high_h), (low, high) = sorted((one_h, other_h)), sorted((one, other))
    small = estimate_hours(low_h, device, low, SITE).it_j
    large = estimate_hours(high_h, device, high, SITE).it_j
    assert small.low <= large.low * (1 + 1e-9)
    assert small.mid <= large.mid * (1 + 1e-9)
    assert small.high <= large.high * (1 + 1e-9)


def test_an_hour_of_two_milan_vcpus() -> None:
    estimate = estimate_hours(1.0, VCPUS, 1.0, SITE)
    assert estimate.it_j.mid == pytest.approx(2 * 1.957 * 3600)
    assert estimate.operational_g is not None
    assert estimate.operational_g.mid == pytest.approx(0.003914 * 1.2 * 450)
    assert estimate.embodied_g is not None
    assert estimate.embodied_g.mid == pytest.approx(2 * 0.736, abs=1e-3)
    assert estimate.method == "estimated:vcpu-specpower"
    assert estimate.site == SITE


def test_an_idle_vcpu_still_draws_power() -> None:
    assert estimate_hours(1.0, VCPUS, 0.0, SITE).it_j.mid == pytest.approx(2 * 0.456 * 3600)


def test_a_generic_cpu_says_so_and_is_wider() -> None:
    generic = estimate_hours(1.0, vcpu_device(GENERIC, 2), 0.5, SITE)
    known = estimate_hours(1.0, VCPUS, 0.5, SITE)
    assert generic.method == "estimated:vcpu-specpower-generic"
    assert generic.it_j.high / generic.it_j.low > known.it_j.high / known.it_j.low


def test_an_hour_of_an_h100_holds_the_measured_range() -> None:
    estimate = estimate_hours(1.0, H100, 1.0, SITE)
    assert estimate.it_j.low <= 486 * 3600 <= 688 * 3600 <= estimate.it_j.high
    assert estimate.embodied_g is not None
    hourly_g = 1000 / (4 * 365.25 * 24)
    assert estimate.embodied_g.mid == pytest.approx(164 * hourly_g)
    assert estimate.embodied_g.low == pytest.approx(102.5 * hourly_g)
    assert estimate.embodied_g.high == pytest.approx(262.4 * hourly_g)


def test_every_published_manufacture_has_an_interval() -> None:
    published = [item for item in accelerators() if item.embodied_kg is not None]
    assert published
    for item in published:
        embodied = accelerator_device(item).embodied
        assert embodied is not None
        assert embodied.low_g < embodied.total_g < embodied.high_g


def test_unknown_things_are_none() -> None:
    estimate = estimate_hours(1.0, accelerator_device(accelerator("NVIDIA L4")), 1.0, NOWHERE)
    assert estimate.operational_g is None
    assert estimate.embodied_g is None
    assert estimate_gpu_tokens(TokenWork(8.0, 1, 1), SITE).embodied_g is None


def test_a_published_idle_power_is_used() -> None:
    device = accelerator_device(Accelerator("made up", 100.0, 30.0, None, "a test"), 2)
    assert device.idle_w == Interval(60.0, 60.0, 60.0)
    assert device.full_w.high == 200.0


@pytest.mark.parametrize("time_h", [-1.0, math.nan, math.inf])
def test_impossible_times_are_refused(time_h: float) -> None:
    with pytest.raises(ValueError, match="time_h must be"):
        estimate_hours(time_h, VCPUS, 1.0, SITE)


@pytest.mark.parametrize("utilisation", [-0.1, 1.01, math.nan])
def test_impossible_utilisations_are_refused(utilisation: float) -> None:
    with pytest.raises(ValueError, match="utilisation must be"):
        estimate_hours(1.0, VCPUS, utilisation, SITE)


def test_an_impossible_pue_is_refused() -> None:
    with pytest.raises(ValueError, match="pue must be"):
        Site(WORLD, 0.5)


def test_the_fixed_line_is_the_least_squares_fit_of_the_published_models() -> None:
    sizes_b = [size for size, _, _ in PUBLISHED_FITS]
    fixed_j = [fixed for _, fixed, _ in PUBLISHED_FITS]
    mean_b, mean_j = sum(sizes_b) / 5, sum(fixed_j) / 5
    covariance = sum((b - mean_b) * (j - mean_j) for b, j in zip(sizes_b, fixed_j, strict=True))
    slope = covariance / sum((b - mean_b) ** 2 for b in sizes_b)
    assert pytest.approx(slope, abs=5e-4) == FIXED_J_PER_STEP_PER_B
    assert pytest.approx(mean_j - slope * mean_b, abs=5e-4) == FIXED_J_PER_STEP


def test_the_marginal_rates_span_the_published_models() -> None:
    rates = [marginal / size for size, _, marginal in PUBLISHED_FITS]
    low, mid, high = MARGINAL_J_PER_TOKEN_PER_B
    assert low <= min(rates) + 1e-4
    assert mid == pytest.approx(sum(rates) / len(rates), abs=2e-4)
    assert high == pytest.approx(0.1975 / 8.19, abs=1e-4)


@pytest.mark.parametrize(
    ("parameters_b", "batch", "measured_j"),
    [
        (8.03, 8, 0.455),
        (8.03, 64, 0.119),
        (8.03, 512, 0.070),
        (8.19, 8, 0.444),
        (8.19, 512, 0.072),
        (14.8, 8, 0.706),
        (12.2, 8, 0.702),
    ],
)
def test_the_middle_is_near_published_gpu_figures(
    parameters_b: float, batch: int, measured_j: float
) -> None:
    estimate = _per_token_j(parameters_b, batch)
    assert estimate.low <= measured_j <= estimate.high
    assert 0.7 <= estimate.mid / measured_j <= 1.5


@pytest.mark.parametrize(
    ("parameters_b", "wall_j"),
    [(1.1, 0.65), (0.75, 0.82), (3.2, 1.73), (4.0, 2.28), (7.2, 3.15), (8.0, 3.39), (23.6, 11.96)],
)
def test_the_interval_holds_wall_plug_figures_of_another_gpu(
    parameters_b: float, wall_j: float
) -> None:
    estimate = _per_token_j(parameters_b, 1)
    assert estimate.low <= wall_j <= estimate.high


def test_an_unknown_batch_is_wider_than_any_usual_one() -> None:
    unknown = _per_token_j(8.0, None)
    for batch in (1, 8, 64, 256):
        known = _per_token_j(8.0, batch)
        assert unknown.low <= known.low
        assert unknown.high >= known.high


@given(sizes, tokens, tokens, batches)
def test_tokens_give_ordered_intervals(
    parameters_b: float, prompt: int, completion: int, batch: int | None
) -> None:
    work = TokenWork(parameters_b, prompt, completion, batch)
    for estimate in (estimate_gpu_tokens(work, SITE), estimate_cpu_tokens(work, MILAN, SITE)):
        assert _ordered(estimate.it_j)
        assert estimate.operational_g is not None
        assert _ordered(estimate.operational_g)
        assert (estimate.it_j.mid == 0) == (prompt == completion == 0)


@given(sizes, sizes, tokens, tokens)
def test_tokens_grow_with_size_and_count(
    one_b: float, other_b: float, one: int, other: int
) -> None:
    (low_b, high_b), (low, high) = sorted((one_b, other_b)), sorted((one, other))
    small, large = TokenWork(low_b, low, low), TokenWork(high_b, high, high)
    assert estimate_gpu_tokens(small, SITE).it_j.mid <= estimate_gpu_tokens(large, SITE).it_j.mid
    smaller = estimate_cpu_tokens(small, MILAN, SITE).it_j.mid
    assert smaller <= estimate_cpu_tokens(large, MILAN, SITE).it_j.mid


@given(st.integers(1, 500))
def test_a_larger_batch_never_costs_more_per_token(batch: int) -> None:
    assert _per_token_j(8.0, batch + 1).mid <= _per_token_j(8.0, batch).mid


@pytest.mark.parametrize(
    ("parameters_b", "extrapolated"), [(8.0, False), (15.0, False), (70, True)]
)
def test_sizes_outside_the_fit_are_marked(parameters_b: float, extrapolated: bool) -> None:
    estimate = estimate_gpu_tokens(TokenWork(parameters_b, 10, 10), SITE)
    assert estimate.extrapolated is extrapolated
    assert estimate.method == "estimated:gpu-step-model"


def test_a_cpu_token_is_between_the_fastest_and_the_slowest_stack_seen() -> None:
    estimate = estimate_cpu_tokens(TokenWork(0.135, 0, 1), MILAN, NOWHERE)
    watts = 2 * MILAN.max_w
    assert estimate.it_j.low <= watts / 835 <= watts / 97 <= watts / 16.5 <= estimate.it_j.high
    assert estimate.method == "estimated:cpu-flops"


def test_a_prompt_token_is_cheaper_than_a_written_one() -> None:
    prompt, completion = TokenWork(8.0, 1, 0, 8), TokenWork(8.0, 0, 1, 8)
    assert (
        estimate_gpu_tokens(prompt, SITE).it_j.mid < estimate_gpu_tokens(completion, SITE).it_j.mid
    )
    cheap = estimate_cpu_tokens(prompt, MILAN, SITE).it_j.mid
    assert cheap < estimate_cpu_tokens(completion, MILAN, SITE).it_j.mid


@pytest.mark.parametrize("parameters_b", [0.0, -1.0, math.nan, math.inf])
def test_impossible_model_sizes_are_refused(parameters_b: float) -> None:
    with pytest.raises(ValueError, match="parameters_b must be greater than 0"):
        TokenWork(parameters_b, 1, 1)


def test_impossible_token_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_tokens must not be negative, not -1"):
        TokenWork(1.0, -1, 1)
    with pytest.raises(ValueError, match="completion_tokens must not be negative, not -2"):
        TokenWork(1.0, 1, -2)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        TokenWork(1.0, 1, 1, 0)


@pytest.mark.parametrize("figures", [(2.0, 1.0, 3.0), (-1.0, 1.0, 2.0), (0.0, 1.0, math.inf)])
def test_an_interval_is_ordered_and_finite(figures: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="an interval needs"):
        Interval(*figures)


def test_an_estimate_is_fitted_unless_it_says_otherwise() -> None:
    figures = Interval(1.0, 2.0, 3.0)
    assert not Estimate(figures, None, None, "estimated:test", NOWHERE).extrapolated
