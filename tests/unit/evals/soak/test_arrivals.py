"""Arrivals that are made up have the moments that they are said to have, and fit."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from evals.load.plan import COLUMNS
from evals.soak.arrivals import BETWEEN_S, PROMPT_TOKENS, TOKENS, Moments, made_up, trace_of


@pytest.mark.parametrize("moments", [BETWEEN_S, PROMPT_TOKENS, TOKENS])
def test_arrivals_have_their_moments(moments: Moments) -> None:
    shots = made_up(seed=1)
    drawn = {
        BETWEEN_S: [b.at_s - a.at_s for a, b in itertools.pairwise(shots)],
        PROMPT_TOKENS: [float(shot.prompt_tokens) for shot in shots],
        TOKENS: [float(shot.max_tokens) for shot in shots],
    }[moments]
    assert statistics.mean(drawn) == pytest.approx(moments.mean, rel=0.05)
    assert statistics.pstdev(drawn) == pytest.approx(moments.deviation, rel=0.15)
    assert made_up(seed=1, count=9) == shots[:9] != made_up(seed=2, count=9)


def test_lengths_fit_the_context() -> None:
    trace, factor = trace_of(None, 1024, seed=0)
    assert 0 < factor < 1
    assert max(shot.prompt_tokens + shot.max_tokens for shot in trace.shots) <= 1024
    assert min(shot.prompt_tokens for shot in trace.shots) >= 1


def test_a_trace_of_a_file_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["2023-11-16 18:00:00,10,2", "2023-11-16 18:00:01,20,4"]
    path.write_text("\n".join([",".join(COLUMNS), *lines]))
    trace, factor = trace_of(path, 1024, seed=0)
    assert (trace.name, factor) == ("trace.csv", 1.0)
    found = trace.arrivals(1.0, 4.0, seed=0)
    assert [(one.at_s, one.prompt_tokens) for one in found] == [(0, 10), (1, 20), (2, 10), (3, 20)]
