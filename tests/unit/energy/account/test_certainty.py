"""The interval around a request's joules: which errors it has, and how they add up."""

import math
from typing import Any

import pytest

from greenllm.energy.account.certainty import CONTENTION, Z90, ErrorBudget, WindowErrors
from greenllm.energy.account.window import CpuShares, DomainWindow


def half_width_j(
    windows: int = 1, part: float = 0.5, strangers: float = 0.0, **errors: Any
) -> float:
    """Of a request with 8 active and 2 idle joules in each of its windows of two seconds."""
    budget = ErrorBudget()
    for number in range(windows):
        start_s = 2.0 * number
        window = DomainWindow(start_s, start_s + 2.0, 4.0, 8.0 / part, cpu=CpuShares(strangers))
        budget.add(WindowErrors(**errors), window, active_j=8.0, idle_j=2.0, resident_s=0.5)
    return budget.half_width_j(10.0 * windows, errors.pop("sensor", 0.0))


def test_without_errors_only_the_sensor_is_left() -> None:
    assert ErrorBudget().half_width_j(10.0, 0.05) == 0.5
    assert half_width_j() == 0


def test_the_split_matters_for_what_was_shared_and_adds_up() -> None:
    assert half_width_j(fit=0.1) == pytest.approx(Z90 * 0.1 * 8.0 * 0.5)
    assert half_width_j(fit=0.1, part=1.0) == 0
    assert half_width_j(windows=9, fit=0.1) == pytest.approx(9 * half_width_j(fit=0.1))


def test_ticks_are_independent_and_matter_only_beside_others() -> None:
    one = half_width_j(tick_s=0.01)
    assert one == pytest.approx(Z90 * 0.01 * 8.0 * 0.5 * 0.5)
    assert half_width_j(windows=9, tick_s=0.01) == pytest.approx(3 * one)
    assert half_width_j(tick_s=0.01, part=1.0) == 0


def test_a_wrong_idle_power_matters_where_windows_and_steps_differ() -> None:
    assert half_width_j(idle_w=0.4) == pytest.approx(Z90 * 0.4 * (0.5 * 2.0 - 0.5))


def test_strangers_may_own_the_floor_and_slow_everything_down() -> None:
    found = half_width_j(strangers=0.75)
    assert found == pytest.approx(2.0 * 3 + CONTENTION * 8.0 * 0.75)
    assert math.isfinite(half_width_j(strangers=1.0))
