"""Units of energy, time and mass, and rounding to significant digits.

Contract: pure conversions between the units this package uses; every name carries its unit.
Factors are exact by definition (1 Wh = 3600 J); the year is the Julian year of 365.25 days.

Source: The International System of Units (SI Brochure, 9th edition).

Not covered: temperature, volume, money, and parsing of text with units.
"""

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

J_PER_WH = 3_600.0
J_PER_KWH = 3_600_000.0
G_PER_KG = 1_000.0
S_PER_HOUR = 3_600.0
S_PER_DAY = 86_400.0
S_PER_YEAR = 365.25 * S_PER_DAY


def joules_to_wh(energy_j: float) -> float:
    """Watt hours of an energy in joules."""
    return energy_j / J_PER_WH


def joules_to_kwh(energy_j: float) -> float:
    """Kilowatt hours of an energy in joules."""
    return energy_j / J_PER_KWH


def hours_to_seconds(time_h: float) -> float:
    """Seconds of a time in hours."""
    return time_h * S_PER_HOUR


def years_to_seconds(time_years: float) -> float:
    """Seconds of a time in Julian years."""
    return time_years * S_PER_YEAR


def kg_to_g(mass_kg: float) -> float:
    """Grams of a mass in kilograms."""
    return mass_kg * G_PER_KG


def significant(value: float, digits: int = 3) -> float:
    """`value` rounded to `digits` significant digits; zero, infinity and NaN stay as they are.

    Raises:
        ValueError: `digits` is less than 1.
    """
    if digits < 1:
        raise ValueError(f"digits must be at least 1, not {digits}")
    return float(f"{value:.{digits - 1}e}")


def rounded(figures: Mapping[str, Any], exact: Collection[str] = ()) -> dict[str, Any]:
    """The same mapping with every float in it to three significant digits, at any depth.

    Those named in `exact` stay as they are.
    """
    return {n: value if n in exact else _rounded(value) for n, value in figures.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return significant(value)
    return rounded(value) if isinstance(value, Mapping) else value


def plain_decimal(value: float, digits: int = 6) -> str:
    """`value` to `digits` significant digits, without an exponent, for readers that know none.

    Raises:
        ValueError: `digits` is less than 1, or `value` is not finite.
    """
    rounded = Decimal(repr(significant(value, digits)))
    if not rounded.is_finite():
        raise ValueError(f"{value} has no decimals")
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
