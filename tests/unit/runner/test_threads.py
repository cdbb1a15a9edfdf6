"""Thread plans: what is chosen from measured costs, and which step gets what."""

from __future__ import annotations

import pytest

from greenllm.runner.threads import StepTime, ThreadPlan, gain, measure_plan, rising


@pytest.mark.parametrize(
    ("speedup", "cpu_ratio", "policy", "chosen"),
    [
        (1.2, 1.7, "auto", 1),
        (1.6, 1.2, "auto", 2),
        (1.6, 1.2, "eco", 1),
        (1.6, 0.9, "eco", 2),
        (1.0, 1.0, "eco", 1),
    ],
)
def test_more_threads_must_earn_their_joules(
    speedup: float, cpu_ratio: float, policy: str, chosen: int
) -> None:
    costs = {1: StepTime(1.0, 1.0), 2: StepTime(1.0 / speedup, cpu_ratio)}
    assert (gain(costs, policy) > 0) == (chosen == 2)  # type: ignore[arg-type]
    assert rising([gain({1: costs[1]}, "eco")]) == 1


@pytest.mark.parametrize(
    ("gains", "first"),
    [
        ([-1, -1, -1], 3),
        ([1, 1, 1], 0),
        ([-1, -1, 1], 2),
        ([0.1, -0.5, 0.2], 2),
        ([-0.1, 0.5, -0.2, 0.3], 1),
        ([0.0], 1),
        ([], 0),
    ],
)
def test_one_size_does_not_decide_for_all(gains: list[float], first: int) -> None:
    assert rising(gains) == first


def test_a_plan_serves_each_size() -> None:
    plan = ThreadPlan((1, 8, 128), (1, 2, 4))
    assert [plan.threads_for(n) for n in (0, 1, 7, 8, 127, 128, 4000)] == [1, 1, 1, 2, 2, 4, 4]
    assert str(plan) == "1 from 1 tokens, 2 from 8 tokens, 4 from 128 tokens"
    assert str(ThreadPlan.fixed(3)) == str(ThreadPlan((1, 8), (3, 3))) == "3"
    assert ThreadPlan.fixed(3).threads_for(500) == 3


def test_sizes_are_measured_apart() -> None:
    """Two threads pay from 8 tokens on; the first run of each shape is not timed."""
    now_s = 0.0
    ran: list[tuple[int, int]] = []

    def step(size: int, threads: int) -> None:
        nonlocal now_s
        is_first = (size, threads) not in ran
        ran.append((size, threads))
        now_s += 100.0 if is_first else size / (threads if size >= 8 else 1)

    plan = measure_plan(step, (1, 2), (1, 8, 32), "auto", wall=lambda: now_s, cpu=lambda: 2 * now_s)
    assert plan == ThreadPlan((1, 8, 32), (1, 2, 2))


def test_a_busy_moment_decides_nothing() -> None:
    """Every third run takes ten times as long; and what pays for small steps pays for large."""
    now_s, runs = 0.0, 0

    def step(size: int, threads: int) -> None:
        nonlocal now_s, runs
        runs += 1
        now_s += (
            size / (1 if threads == 1 or size == 32 else 2) * (10 if runs % 3 == 0 else 1) / 1e3
        )

    plan = measure_plan(step, (1, 2), (1, 8, 32), "auto", wall=lambda: now_s, cpu=lambda: now_s)
    assert plan.threads == (2, 2, 2)


class _Machine:
    """Steps of one second per token on one thread, half on two; the clock is ours."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ran: list[tuple[int, int]] = []

    def step(self, size: int, threads: int) -> None:
        self.ran.append((size, threads))
        self.now_s += size / threads

    def plan(self, budget_s: float) -> ThreadPlan:
        return measure_plan(
            self.step,
            (1, 2),
            (1, 8, 32),
            "auto",
            budget_s=budget_s,
            wall=lambda: self.now_s,
            cpu=lambda: self.now_s,
        )


@pytest.mark.parametrize(
    ("budget_s", "threads", "untried"),
    [
        (10_000, (2, 2, 2), None),
        (60, (2, 2, 2), 32),
        (50, (2, 2, 2), 32),
        (30, (2, 2, 2), 32),
        (5.5, (2, 2, 2), 8),
        (4.0, (2, 2, 2), 8),
        (2.0, (1, 1, 1), 1),
        (1.0, (1, 1, 1), 1),
        (0, (1, 1, 1), 1),
    ],
)
def test_trials_end_in_time(
    budget_s: float,
    threads: tuple[int, ...],
    untried: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A size whose candidates were not all timed follows the one before it."""
    machine = _Machine()
    assert machine.plan(budget_s).threads == threads
    longest = max((size / count for size, count in machine.ran), default=0)
    assert machine.now_s <= budget_s + longest or not machine.ran
    if untried:
        assert f"before steps of {untried} tokens and more were timed" in caplog.text
        assert f"Such steps take {threads[-1]} thread(s) until the next start" in caplog.text
        assert "give --threads a number" in caplog.text
    assert bool(caplog.text) == bool(untried)
