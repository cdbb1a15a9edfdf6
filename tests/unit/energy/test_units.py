"""Conversions are exact; rounding keeps significant digits at every size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy import units

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e200, max_value=1e200)


def test_factors_agree_with_each_other() -> None:
    assert units.J_PER_KWH == units.J_PER_WH * 1000
    assert units.hours_to_seconds(24) == units.S_PER_DAY
    assert units.years_to_seconds(4) == 1461 * units.S_PER_DAY
    assert units.kg_to_g(0.5) == 500


def test_one_kilowatt_hour() -> None:
    assert units.joules_to_kwh(3.6e6) == 1
    assert units.joules_to_wh(3.6e6) == 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (1234.5, 1230.0),
        (-0.0012345, -0.00123),
        (9.999, 10.0),
        (1.5e-300, 1.5e-300),
        (1.23456e300, 1.23e300),
        (math.inf, math.inf),
    ],
)
def test_three_significant_digits(value: float, expected: float) -> None:
    assert units.significant(value) == expected


def test_nan_stays_nan() -> None:
    assert math.isnan(units.significant(math.nan))


def test_other_digit_counts() -> None:
    assert units.significant(0.123456, 1) == 0.1
    assert units.significant(0.123456, 5) == 0.12346
    with pytest.raises(ValueError, match="digits must be at least 1, not 0"):
        units.significant(1.0, 0)


@given(finite.filter(lambda value: abs(value) > 1e-200), st.integers(1, 12))
def test_rounding_errs_by_half_a_digit_at_most_and_is_idempotent(value: float, digits: int) -> None:
    rounded = units.significant(value, digits)
    assert abs(rounded - value) <= 0.5000001 * 10.0 ** (1 - digits) * abs(value)
    assert units.significant(rounded, digits) == rounded
    assert units.significant(-value, digits) == -rounded
