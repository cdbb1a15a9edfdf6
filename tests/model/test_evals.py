"""The benchmarks' own arithmetic, and one tiny run of the engine arm."""

from __future__ import annotations

import pytest

from evals.lab import interleave, load_bench, paired_ratio, story_request


def test_arms_take_turns_and_change_places() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3, progress=lambda _: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_ratios_are_paired_by_round() -> None:
    ratio = paired_ratio([1.0, 20.0, 300.0], [2.0, 10.0, 100.0])
    assert ratio["median"] == 2.0
    assert ratio["q1"] < ratio["median"] < ratio["q3"]


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
