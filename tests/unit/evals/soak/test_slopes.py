"""A slope that a few wild samples do not move, with an interval that holds it."""

from __future__ import annotations

import random

import pytest

from evals.soak.report import slopes_of
from evals.soak.slopes import second_half, theil_sen


def test_a_line_has_its_slope_whatever_a_few_samples_say() -> None:
    times = [float(number) for number in range(60)]
    figures = [5 + 2 * at for at in times]
    figures[7] = figures[30] = 1e9
    slope = theil_sen(times, figures)
    assert slope is not None
    assert (slope.value, slope.low, slope.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_holds_the_slope_most_of_the_time() -> None:
    source, held = random.Random(3), 0
    times = [float(number) for number in range(30)]
    for _ in range(200):
        slope = theil_sen(times, [source.gauss(0.1 * at, 1.0) for at in times])
        assert slope is not None
        assert slope.low <= slope.value <= slope.high
        held += slope.low <= 0.1 <= slope.high
    assert 180 <= held <= 200


def test_many_samples_are_thinned_and_few_tell_nothing() -> None:
    assert theil_sen([0.0, 1.0], [1.0, 2.0]) is None
    times = [float(number) for number in range(5000)]
    slope = theil_sen(times, times)
    assert slope is not None
    assert slope.value == pytest.approx(1.0)


def test_the_second_half_is_of_the_time_not_of_the_samples() -> None:
    hours = [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 3.0]
    assert hours[second_half(hours)] == [2.0, 3.0]
    row = slopes_of([0.0, 1.0, 2.0, 3.0, 4.0], {"x": [9.0, 5.0, 1.0, 2.0, 3.0]})["x"]
    assert (row["first"], row["half"], row["last"]) == (9.0, 1.0, 3.0)
    assert row["slope"] == pytest.approx(1.0)
