"""The interval around a request's joules: which errors it has, and how they add up."""

import math
from typing import Any

import pytest

from greenllm.energy.account.certainty import CONTENTION, ErrorBudget, Part, WindowErrors
from greenllm.energy.account.window import CpuShares, DomainWindow

PART = Part(active_j=8.0, idle_j=2.0, resident_s=0.5, present_s=1.0)


def half_width_j(
    windows: int = 1, share: float = 0.5, strangers: float = 0.0, **errors: Any
) -> float:
    """Of a request with the same part of each of its windows of two seconds."""
    budget = ErrorBudget()
    for number in range(windows):
        start_s = 2.0 * number
        window = DomainWindow(start_s, start_s + 2.0, 4.0, 8.0 / share, cpu=CpuShares(strangers))
        budget.add(WindowErrors(**errors), window, PART)
    return budget.half_width_j(10.0 * windows, 0.0)


def test_without_errors_only_the_sensor_is_left() -> None:
    assert ErrorBudget().half_width_j(10.0, 0.05) == 0.5
    assert half_width_j() == 0


def test_shares_matter_for_what_was_shared_and_average_out_in_part() -> None:
    one, nine = half_width_j(steps=0.1), half_width_j(windows=9, steps=0.1)
    assert half_width_j(steps=0.2) == pytest.approx(2 * one)
    assert half_width_j(share=0.1, steps=0.1) > one
    assert half_width_j(share=1.0, steps=0.1) == 0
    assert 3 * one < nine < 9 * one


def test_power_matters_for_those_who_were_not_there_all_the_time() -> None:
    assert half_width_j(power=0.1, busy_s=1.0) == 0
    assert 0 < half_width_j(power=0.1, busy_s=1.5) < half_width_j(power=0.1, busy_s=2.0)


def test_errors_of_power_fall_with_the_square_of_the_absence() -> None:
    absent_half, absent_all_but = (
        half_width_j(power=0.1, busy_s=2.0),
        half_width_j(power=0.1, busy_s=1e9),
    )
    assert absent_all_but == pytest.approx(4 * absent_half, rel=1e-6)


def test_ticks_are_independent_and_one_edge_is_everybodys() -> None:
    alone, beside = half_width_j(share=1.0, tick_s=0.01), half_width_j(tick_s=0.01)
    assert 0 < alone < beside
    assert half_width_j(windows=9, share=1.0, tick_s=0.01) == alone
    assert half_width_j(windows=9, tick_s=0.01) < 3 * beside


def test_a_wrong_idle_power_matters_where_windows_and_steps_differ() -> None:
    found = half_width_j(idle_w=0.4)
    assert found == pytest.approx(1.645 * 0.4 * (0.5 * 2.0 - 0.5))


def test_strangers_may_own_the_floor_and_slow_everything_down() -> None:
    found = half_width_j(strangers=0.75)
    assert found == pytest.approx(2.0 * 3 + CONTENTION * 8.0 * 0.75)
    assert math.isfinite(half_width_j(strangers=1.0))
