"""The rehearsal: thread trials."""

from __future__ import annotations

import pytest

from evals.lab import load_bench
from greenllm.runner.warmup import choose_threads


@pytest.mark.parametrize(("speedup", "chosen"), [(1.2, 1), (1.6, 4)])
def test_more_threads_must_earn_their_joules(speedup: float, chosen: int) -> None:
    runner = load_bench("bundled", threads=1).runner
    used: list[int] = []
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1.0 if used[-1] == 1 else 1.0 / speedup
        return now_s

    assert choose_threads(runner, (1, 4), used.append, clock=clock) == chosen
    assert used == [1, 4, chosen]
