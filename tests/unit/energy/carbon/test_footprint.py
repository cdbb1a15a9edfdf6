"""Grams follow the SCI formulas, refuse impossible inputs, and keep the unknown unknown."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.carbon import footprint as carbon
from greenllm.energy.carbon.grid import Intensity
from greenllm.energy.tables import read_table
from greenllm.energy.units import S_PER_HOUR, years_to_seconds

WORLD = Intensity(450.0, "WORLD", "World", 2025, "a source", "CC BY 4.0")
amount = st.floats(0, 1e12)
BAD = [-1.0, math.nan, math.inf]


def test_one_kilowatt_hour_at_450() -> None:
    assert carbon.operational_g(3.6e6, 1.0, 450.0) == 450.0
    assert carbon.operational_g(3.6e6, 1.5, 450.0) == 675.0


@given(amount, amount, st.floats(1, 3), st.floats(1, 3))
def test_operational_grams_grow_with_energy_and_pue(
    one_j: float, other_j: float, one_pue: float, other_pue: float
) -> None:
    (low_j, high_j), (low, high) = sorted((one_j, other_j)), sorted((one_pue, other_pue))
    small = carbon.operational_g(low_j, low, 300.0)
    assert 0 <= small <= carbon.operational_g(high_j, high, 300.0)


@given(amount, amount)
def test_operational_grams_add_up(one_j: float, other_j: float) -> None:
    parts = carbon.operational_g(one_j, 1.2, 100.0) + carbon.operational_g(other_j, 1.2, 100.0)
    assert carbon.operational_g(one_j + other_j, 1.2, 100.0) == pytest.approx(parts)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("it_j", lambda bad: carbon.operational_g(bad, 1.0, 1.0)),
        ("pue", lambda bad: carbon.operational_g(1.0, bad, 1.0)),
        ("g_per_kwh", lambda bad: carbon.operational_g(1.0, 1.0, bad)),
        ("total_embodied_g", lambda bad: carbon.embodied_g(bad, 1, 1, 1, 1)),
        ("time_reserved_s", lambda bad: carbon.embodied_g(1, bad, 1, 1, 1)),
        ("lifetime_s", lambda bad: carbon.embodied_g(1, 1, bad, 1, 1)),
        ("resources_reserved", lambda bad: carbon.embodied_g(1, 1, 1, bad, 1)),
        ("total_resources", lambda bad: carbon.embodied_g(1, 1, 1, 1, bad)),
        ("operational_g", lambda bad: carbon.sci_g_per_1k_tokens(bad, 1.0, 1)),
        ("embodied_g", lambda bad: carbon.sci_g_per_1k_tokens(1.0, bad, 1)),
        ("embodied_g", lambda bad: carbon.footprint(1.0, 1.0, WORLD, bad)),
        ("num_vcpus", lambda bad: carbon.EmbodiedModel.per_vcpu(bad)),
    ],
)
def test_impossible_inputs_are_named(
    name: str, call: Callable[[float], object], bad: float
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        call(bad)


def test_a_building_cannot_save_power() -> None:
    with pytest.raises(ValueError, match=r"pue must be finite and at least 1, not 0\.99"):
        carbon.operational_g(1.0, 0.99, 1.0)


def test_embodied_grams_of_a_quarter_server_for_a_year() -> None:
    year_s = years_to_seconds(1)
    assert carbon.embodied_g(1_600_000, year_s, 4 * year_s, 16, 64) == pytest.approx(100_000)


@given(st.floats(0, 1e9), st.floats(0, 1), st.floats(0, 1))
def test_embodied_grams_grow_with_time_and_share(time_s: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    small = carbon.embodied_g(1000.0, time_s, 1e8, low, 1.0)
    assert 0 <= small <= carbon.embodied_g(1000.0, time_s * 2, 1e8, high, 1.0)


@pytest.mark.parametrize("name", ["lifetime_s", "total_resources"])
def test_zero_totals_are_refused(name: str) -> None:
    values = {"lifetime_s": 1.0, "total_resources": 1.0, name: 0.0}
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        carbon.embodied_g(1, 1, values["lifetime_s"], 1, values["total_resources"])


def test_nobody_reserves_more_than_there_is() -> None:
    with pytest.raises(ValueError, match=r"resources_reserved \(3\) exceeds total_resources \(2\)"):
        carbon.embodied_g(1, 1, 1, 3, 2)


def test_sci_per_thousand_tokens() -> None:
    assert carbon.sci_g_per_1k_tokens(3.0, 1.0, 2_000) == 2.0


def test_sci_is_unknown_without_tokens_or_hardware() -> None:
    assert carbon.sci_g_per_1k_tokens(3.0, 1.0, 0) is None
    assert carbon.sci_g_per_1k_tokens(3.0, None, 10) is None
    with pytest.raises(ValueError, match="tokens must be"):
        carbon.sci_g_per_1k_tokens(3.0, 1.0, -1)


def test_a_footprint_adds_its_parts() -> None:
    known = carbon.footprint(3.6e6, 1.2, WORLD, 60.0)
    assert known.operational_g == pytest.approx(540)
    assert known.total_g == pytest.approx(600)
    assert (known.intensity, known.pue) == (WORLD, 1.2)


def test_an_unknown_part_makes_the_total_unknown() -> None:
    unknown = carbon.footprint(3.6e6, 1.2, WORLD)
    assert unknown.embodied_g is None
    assert unknown.total_g is None


def test_the_embodied_row_is_attributed_and_plausible() -> None:
    (row,) = read_table("embodied.csv")
    assert row["source"]
    assert row["licence"] == "Apache-2.0"
    assert int(row["year"]) >= 2020
    assert 5 <= float(row["low_kg"]) <= float(row["total_kg"]) <= float(row["high_kg"]) <= 100
    assert float(row["lifetime_years"]) == 4


def test_the_default_vcpu() -> None:
    model = carbon.EmbodiedModel.per_vcpu()
    assert model.total_g == 25_800
    assert model.grams(years_to_seconds(4)) == pytest.approx(25_800)
    assert model.grams(S_PER_HOUR) == pytest.approx(0.736, abs=1e-3)
    assert model.grams(S_PER_HOUR, share=0.5) == pytest.approx(0.368, abs=1e-3)
    assert carbon.EmbodiedModel.per_vcpu(2).total_g == 51_600


def test_an_embodied_model_is_an_ordered_range() -> None:
    with pytest.raises(ValueError, match="total_g"):
        carbon.EmbodiedModel(1.0, 2.0, 3.0, 1.0, "a source")
    with pytest.raises(ValueError, match="high_g"):
        carbon.EmbodiedModel(2.0, 1.0, 1.0, 1.0, "a source")
    with pytest.raises(ValueError, match="lifetime_s"):
        carbon.EmbodiedModel(2.0, 1.0, 3.0, 0.0, "a source")
