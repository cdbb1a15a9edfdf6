"""Limits: what a key gets in any time, what it pays back, and how a day begins anew."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.keys.headers import duration, limit_headers
from serving.keys.limits import DAY_S, Limiter, LimitExceededError, Limits, Standing

NOON_S = 20_000 * DAY_S + DAY_S / 2
KEY = "ada"


class Time:
    """Two clocks that move together."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def limiter(self, **spent: tuple[float, float]) -> Limiter:
        before: dict[str | None, tuple[float, float]] = dict(spent.items())
        return Limiter(lambda: self.passed_s, lambda: NOON_S + self.passed_s, before)


def begins(limiter: Limiter, limits: Limits, *, spends: bool = True, key: str = KEY) -> bool:
    try:
        limiter.begin(key, limits, spends=spends)
    except LimitExceededError:
        return False
    return True


def refusal(limiter: Limiter, limits: Limits) -> LimitExceededError:
    with pytest.raises(LimitExceededError) as caught:
        limiter.begin(KEY, limits, spends=True)
    return caught.value


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan])
def test_a_limit_is_above_zero_and_finite(wrong: float) -> None:
    with pytest.raises(ValueError, match="joules_per_day must be above 0"):
        Limits(joules_per_day=wrong)


def test_without_limits_everything_begins() -> None:
    limiter = Time().limiter()
    assert all(begins(limiter, Limits()) for _ in range(100))
    assert limiter.standings(KEY, Limits()) == {}


def test_requests_come_back_one_by_one() -> None:
    time = Time()
    limiter, limits = time.limiter(), Limits(requests_per_minute=3)
    assert [begins(limiter, limits) for _ in range(4)] == [True, True, True, False]
    error = refusal(limiter, limits)
    assert (error.limit, error.retry_after_s) == ("requests_per_minute", 20)
    assert "3 requests per minute" in str(error)
    time.passed_s += error.retry_after_s
    assert [begins(limiter, limits) for _ in range(2)] == [True, False]


def test_tokens_are_counted_when_they_are_known_and_paid_back() -> None:
    time = Time()
    limiter, limits = time.limiter(), Limits(tokens_per_minute=100)
    assert begins(limiter, limits)
    limiter.spend(KEY, 300, None, None)
    assert limiter.standings(KEY, limits)["tokens_per_minute"].left == -200
    assert refusal(limiter, limits).retry_after_s == 120
    assert begins(limiter, limits, spends=False), "what uses no tokens goes on"
    time.passed_s += 121
    assert begins(limiter, limits)


@pytest.mark.parametrize("unit", ["joules", "grams"])
def test_a_day_has_its_joules_and_grams(unit: str) -> None:
    time = Time()
    allowed: dict[str, Any] = {f"{unit}_per_day": 5.0}
    limits = Limits(**allowed)
    limiter = time.limiter(ada=(4.0, 4.0), bob=(9.0, 9.0))
    assert begins(limiter, limits), "some is left of what was used before the start"
    assert not begins(limiter, limits, key="bob")
    limiter.spend(KEY, 0, 1.5, 1.5)
    error = refusal(limiter, limits)
    assert (error.limit, error.retry_after_s) == (f"{unit}_per_day", DAY_S / 2)
    time.passed_s += error.retry_after_s
    assert begins(limiter, limits)
    assert begins(limiter, limits, key="bob")


def test_keys_have_limits_of_their_own_and_strangers_leave_nothing() -> None:
    limiter, limits = Time().limiter(), Limits(requests_per_minute=1)
    assert begins(limiter, limits)
    assert begins(limiter, limits, key="bob")
    limiter.spend("nobody", 10, 1.0, 1.0)
    limiter.spend(None, 10, 1.0, 1.0)
    assert limiter.standings("nobody", Limits(joules_per_day=1.0))["joules_per_day"].left == 1.0


def test_limits_that_change_hold_at_once() -> None:
    limiter = Time().limiter()
    assert all(begins(limiter, Limits(requests_per_minute=9)) for _ in range(5))
    assert not begins(limiter, Limits(requests_per_minute=5))
    assert begins(limiter, Limits(requests_per_minute=6))


PAUSES = st.lists(st.floats(0, 40), min_size=1, max_size=60)


@given(allowed=st.integers(1, 20), pauses=PAUSES)
def test_in_any_time_a_key_gets_its_rate_and_one_allowance(
    allowed: int, pauses: list[float]
) -> None:
    time = Time()
    limiter, limits = time.limiter(), Limits(requests_per_minute=allowed)
    begun: list[float] = []
    for pause_s in pauses:
        time.passed_s += pause_s
        if begins(limiter, limits):
            begun.append(time.passed_s)
        else:
            wait_s = refusal(limiter, limits).retry_after_s
            assert 1 <= wait_s <= math.ceil(60 / allowed), "never longer than for one more"
    for first, start_s in enumerate(begun):
        for last in range(first, len(begun)):
            most = allowed * (1 + (begun[last] - start_s) / 60)
            assert last - first + 1 <= most + 1e-6


@given(
    st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 90), st.integers(0, 3000)), max_size=40)
)
def test_tokens_keep_to_the_rate_but_for_the_request_that_goes_beyond(
    allowed: int, asked: list[tuple[float, int]]
) -> None:
    time = Time()
    limiter, limits = time.limiter(), Limits(tokens_per_minute=allowed)
    used = largest = 0
    for pause_s, tokens in asked:
        time.passed_s += pause_s
        if begins(limiter, limits):
            limiter.spend(KEY, tokens, None, None)
            used, largest = used + tokens, max(largest, tokens)
        standing = limiter.standings(KEY, limits)["tokens_per_minute"]
        assert standing.left <= allowed
        assert standing.reset_s >= 0
    assert used <= allowed * (1 + time.passed_s / 60) + largest + 1e-6


@given(st.lists(st.tuples(st.sampled_from(["ada", "bob"]), st.floats(0, 10)), max_size=30))
def test_nobody_pays_for_another(spent: list[tuple[str, float]]) -> None:
    limiter, limits = Time().limiter(), Limits(joules_per_day=1e9)
    for key in ("ada", "bob"):
        limiter.begin(key, limits, spends=True)
    for key, joules in spent:
        limiter.spend(key, 1, joules, None)
    for key in ("ada", "bob"):
        own = math.fsum(joules for name, joules in spent if name == key)
        assert limiter.standings(key, limits)["joules_per_day"].left == pytest.approx(1e9 - own)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.2, "2s"), (360, "6m0s"), (DAY_S / 2, "12h0m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_say_what_is_left() -> None:
    standings: dict[str, Any] = {
        "requests_per_minute": Standing(60, 58.7, 1.3),
        "joules_per_day": Standing(1e6, -3.0, 60.0),
    }
    assert limit_headers(standings) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-joules": "1000000",
        "x-ratelimit-remaining-joules": "0",
        "x-ratelimit-reset-joules": "1m0s",
    }
