"""The intensity table is complete and plausible, and an unknown zone is never guessed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.carbon.grid import (
    ALIASES,
    CustomIntensity,
    Intensity,
    IntensitySource,
    IntensityTable,
    StaticIntensity,
    UnknownZoneError,
)
from greenllm.energy.tables import optional_float, optional_int, read_table

TABLE = IntensityTable.load()


def test_every_row_is_attributed_and_plausible() -> None:
    rows = read_table("intensity.csv")
    for row in rows:
        assert row["source"]
        assert row["licence"] in ("CC BY 4.0", "CC BY-SA 4.0")
        assert ("CO2.js" in row["source"]) == (row["licence"] == "CC BY-SA 4.0")
        assert row["method"]
        assert 2020 <= int(row["year"]) <= 2026
        # Turkmenistan, the highest published figure, is at 1306.
        assert 15 <= float(row["g_per_kwh"]) <= 1400
    assert len({row["zone"] for row in rows}) == len(rows) >= 200


def test_zone_codes_are_iso_shaped_and_unique() -> None:
    rows = [row for row in read_table("intensity.csv") if row["zone"] != "WORLD"]
    assert all(len(row["zone"]) == 3 and row["zone"].isupper() for row in rows)
    assert len({row["alpha2"] for row in rows}) == len(rows)
    assert all(len(row["alpha2"]) == 2 for row in rows)


@pytest.mark.parametrize(
    ("zone", "g_per_kwh", "year"),
    [
        ("FRA", 44.18, 2024),
        ("DEU", 342.06, 2024),
        ("USA", 383.55, 2024),
        ("SWE", 35.89, 2024),
        ("IND", 708.96, 2024),
        ("PRT", 111.8, 2024),
        ("ISL", 28.33, 2023),
        ("WORLD", 458.29, 2025),
    ],
)
def test_golden_values(zone: str, g_per_kwh: float, year: int) -> None:
    intensity = TABLE.lookup(zone)
    assert (intensity.g_per_kwh, intensity.year) == (g_per_kwh, year)
    assert intensity.zone == zone
    assert "Ember" in intensity.source


@pytest.mark.parametrize(
    "zone", ["FRA", "fra", "fr", "FR", "France", " france ", "FRANCE", "fRaNcE"]
)
def test_a_zone_has_many_spellings(zone: str) -> None:
    assert TABLE.lookup(zone).zone == "FRA"


def test_every_zone_is_found_by_every_code_and_name() -> None:
    for row in read_table("intensity.csv"):
        for key in filter(None, (row["zone"], row["alpha2"], row["name"])):
            assert TABLE.lookup(key).zone == row["zone"]


@pytest.mark.parametrize(("alias", "zone"), ALIASES.items())
def test_aliases_point_at_zones(alias: str, zone: str) -> None:
    assert TABLE.lookup(alias).zone == zone


def test_an_unknown_zone_suggests_names() -> None:
    with pytest.raises(UnknownZoneError, match=r"'Germny'.*did you mean Germany"):
        TABLE.lookup("Germny")
    with pytest.raises(ValueError, match="nothing similar is known"):
        TABLE.lookup("#########")


@given(st.text(max_size=12).filter(lambda text: text.strip().casefold() not in TABLE.zone_by_key))
def test_no_unknown_text_gets_a_figure(text: str) -> None:
    with pytest.raises(UnknownZoneError):
        TABLE.lookup(text)


@pytest.mark.parametrize("zone", ["CAF", "ESH"])
def test_rows_too_doubtful_to_ship_are_absent(zone: str) -> None:
    with pytest.raises(UnknownZoneError):
        TABLE.lookup(zone)


def test_zones_are_sorted() -> None:
    zones = TABLE.zones()
    assert list(zones) == sorted(zones)
    assert {"WORLD", "FRA", "ZWE"} <= set(zones)


@given(st.floats(allow_nan=False))
def test_a_static_source_ignores_the_time(at_s: float) -> None:
    source: IntensitySource = StaticIntensity(TABLE.lookup("NOR"))
    assert source.intensity(at_s) == TABLE.lookup("NOR")


def test_a_custom_figure_keeps_its_source() -> None:
    source: IntensitySource = CustomIntensity(12.5, "supplier statement 2025", "roof", 2025)
    intensity = source.intensity(0.0)
    assert (intensity.g_per_kwh, intensity.zone, intensity.year) == (12.5, "roof", 2025)
    assert intensity.source == "supplier statement 2025"
    assert intensity.licence == "supplied by the user"


def test_a_custom_year_may_be_unknown() -> None:
    assert CustomIntensity(0.0, "own solar panels").intensity(1.0).year is None


@pytest.mark.parametrize("source", ["", "  "])
def test_no_intensity_without_a_source(source: str) -> None:
    with pytest.raises(ValueError, match="source must name"):
        CustomIntensity(100.0, source)


@pytest.mark.parametrize("g_per_kwh", [-1.0, math.nan, math.inf])
def test_no_impossible_intensity(g_per_kwh: float) -> None:
    with pytest.raises(ValueError, match="g_per_kwh must be finite and not negative"):
        CustomIntensity(g_per_kwh, "somewhere")
    with pytest.raises(ValueError, match="g_per_kwh"):
        Intensity(g_per_kwh, "X", "X", None, "somewhere", "none")


def test_an_empty_cell_is_none_and_zero_is_zero() -> None:
    assert (optional_float(""), optional_int("")) == (None, None)
    assert (optional_float("0"), optional_int("0")) == (0.0, 0)
