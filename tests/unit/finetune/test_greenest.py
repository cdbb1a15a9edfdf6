"""Choosing the greenest window of a series."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.plan.greenest import Series, greenest_start, read_series, seconds_of
from greenllm.config import ConfigError

HOUR = 3600.0


def series(*values: float) -> Series:
    return Series(tuple(i * HOUR for i in range(len(values))), values, "test")


def test_the_mean_is_weighted_by_time() -> None:
    found = series(100, 300)
    assert found.mean(0, HOUR) == 100
    assert found.mean(HOUR / 2, HOUR) == 200
    assert found.mean(3 * HOUR, HOUR) == 300, "the last value holds"


def test_the_window_begins_or_ends_where_the_grid_changes() -> None:
    start_s, mean = greenest_start(series(400, 200, 100, 500), 0.0, 1.5 * HOUR, 24 * HOUR)
    assert start_s == 1.5 * HOUR
    assert mean == pytest.approx((0.5 * 200 + 100) / 1.5)


def test_it_ends_before_the_deadline() -> None:
    start_s, mean = greenest_start(series(400, 300, 100, 100), 0.0, HOUR, 2 * HOUR)
    assert (start_s, mean) == (HOUR, 300)


def test_what_does_not_fit_starts_at_once() -> None:
    assert greenest_start(series(400, 100), 0.0, 5 * HOUR, HOUR)[0] == 0.0


values = st.lists(st.floats(1, 1000), min_size=1, max_size=12)


@given(values, st.floats(0, 5 * HOUR), st.floats(60, 4 * HOUR), st.floats(HOUR, 20 * HOUR))
def test_no_later_start_is_greener(
    grid: list[float], now_s: float, duration_s: float, deadline_s: float
) -> None:
    found = series(*grid)
    start_s, mean = greenest_start(found, now_s, duration_s, deadline_s)
    latest_s = min(now_s + deadline_s, found.end_s) - duration_s
    assert now_s <= start_s <= max(now_s, latest_s)
    assert mean <= found.mean(now_s, duration_s) + 1e-9
    for i in range(50):
        other_s = now_s + i / 49 * max(0.0, latest_s - now_s)
        assert mean <= found.mean(other_s, duration_s) * (1 + 1e-9) + 1e-9


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text("time,g_per_kwh\n2026-11-25T12:00:00+00:00,120\n2026-11-25T13:00:00+00:00,80\n")
    found = read_series(path)
    assert list(found.g_per_kwh) == [120, 80]
    assert found.at_s[1] - found.at_s[0] == HOUR
    assert found.source == "grid.csv"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time,g_per_kwh\n", "holds no values"),
        ("time,g\n1,2\n", r"grid\.csv:2 needs"),
        ("time,g_per_kwh\n1,2\nsoon,3\n", r"grid\.csv:3 needs"),
        ("time,g_per_kwh\n1,-2\n", "no intensity"),
        ("time,g_per_kwh\n2,2\n1,3\n", "do not rise"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_series(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_series(tmp_path / "none.csv")


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("12h", 43200), ("1.5d", 129600)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "-3h", "infh", "1w", "nanh"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--deadline must be"):
        seconds_of(text)
