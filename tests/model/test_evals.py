"""An engine for studies, on the bundled model."""

from __future__ import annotations

import pytest

from evals.engines import load_bench
from evals.studies.load import story_request


def test_a_bench_engine_makes_the_tokens_it_is_asked_for() -> None:
    bench = load_bench("bundled", threads=1)
    engine = bench.engine(bench.account())
    engine.add_request(story_request(bench.tokenizer, "r", 5))
    tokens = []
    while engine.has_work:
        tokens += engine.step()
    (receipt,) = engine.drain()
    assert len(tokens) == receipt.completion_tokens == 5
    assert receipt.total_j is not None
    assert receipt.total_j == pytest.approx((receipt.active_j or 0) + (receipt.idle_j or 0))
    assert receipt.total_j > 0
