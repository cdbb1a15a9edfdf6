"""Moments: Unix seconds, ISO 8601, and everything else refused."""

import pytest

from greenllm.energy.period import parse_moment


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        (None, 7.0),
        ("12.5", 12.5),
        ("1970-01-01T01:00", 3600.0),
        ("1970-01-01T01:00+01:00", 0.0),
        ("1970-01-02", 86_400.0),
    ],
)
def test_moments(text: str | None, expected_s: float) -> None:
    assert parse_moment("since", text, 7.0) == expected_s


@pytest.mark.parametrize("text", ["yesterday", "nan", "inf", "", "1970-13-01"])
def test_what_is_no_moment_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="since must be"):
        parse_moment("since", text, 0.0)
