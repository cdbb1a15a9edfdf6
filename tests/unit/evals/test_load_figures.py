"""Percentiles and sums of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.load.figures import LoadAnswer, percentile, spread, summarize


def answer(sent_s: float, tokens: int, energy_j: float | None = None) -> LoadAnswer:
    """First token after 1 s, then two a second."""
    last_s = sent_s + 1 + (tokens - 1) / 2
    return LoadAnswer(
        sent_s,
        last_s,
        first_s=sent_s + 1,
        last_s=last_s,
        prompt_tokens=10,
        completion_tokens=tokens,
        energy_j=energy_j,
        energy_method="modelled:x" if energy_j is not None else None,
    )


def test_percentiles_are_interpolated() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1, 2], 0.9) == pytest.approx(1.9)
    assert percentile([5], 0.99) == 5


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_within_its_values(values: list[float], quantile: float) -> None:
    assert min(values) <= percentile(values, quantile) * (1 + 1e-12) + 1e-12
    assert percentile(values, quantile) <= max(values) * (1 + 1e-12)


@pytest.mark.parametrize(("values", "quantile"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_no_percentile_of_nothing(values: list[float], quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        percentile(values, quantile)


def test_sums_of_whole_answers() -> None:
    summary = summarize([answer(0, 5, 2.0), answer(1, 5)])
    assert (summary.sent, summary.ok, summary.failed) == (2, 2, 0)
    assert summary.wall_s == 4.0
    assert summary.tokens_per_s == 2.5
    assert summary.prompt_tokens_per_s == 5.0
    assert summary.ttft_s is not None
    assert summary.ttft_s.p50 == 1.0
    assert summary.tpot_s is not None
    assert summary.tpot_s.p99 == 0.5
    assert summary.energy is not None
    assert (summary.energy.joules, summary.energy.joules_per_token) == (2.0, 0.4)
    assert (summary.energy.answers, summary.energy.method) == (1, "modelled:x")


def test_a_failed_answer_counts_for_nothing_but_its_time() -> None:
    failed = LoadAnswer(0, 8, first_s=0.1, completion_tokens=100, energy_j=9.0, failure="cut short")
    summary = summarize([answer(0, 5), failed])
    assert (summary.ok, summary.failed, summary.failures) == (1, 1, {"cut short": 1})
    assert summary.completion_tokens == 5
    assert summary.tokens_per_s == 5 / 8
    assert summary.energy is None


def test_what_is_unknown_is_none() -> None:
    summary = summarize([])
    assert summary.tokens_per_s is None
    assert summary.prompt_tokens is None
    assert summary.ttft_s is None
    assert spread([None]) is None
    assert LoadAnswer(0, 1, first_s=0.5, last_s=0.5, completion_tokens=1).tpot_s is None
