"""Two winners are compared side by side."""

from __future__ import annotations

import pytest

from evals.studies.tuned import side_by_side
from evals.tuning.search import Trial
from evals.tuning.space import Setting
from greenllm.intervals import Estimate


def test_winners_answer_side_by_side_once_more_than_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = iter([(9.0, 1.0), (1.0, 2.0), (3.0, 2.0)])

    class MadeUp:
        def __init__(self, *args: object, **options: object) -> None: ...

        def measure(self, settings: list[Setting], examples: int) -> list[Trial]:
            nothing = Estimate(1.0, 1.0, 1.0, 1)
            return [
                Trial(setting, 1, nothing, cost, 0.1, 0.0)
                for setting, cost in zip(settings, next(costs), strict=True)
            ]

        def close(self) -> None: ...

    monkeypatch.setattr("evals.studies.tuned.ServerBench", MadeUp)
    settings = [Setting((("threads", "1"),)), Setting((("threads", "2"),))]
    assert side_by_side("bundled", settings, 4, rounds=2) == [0.5, 1.5]
