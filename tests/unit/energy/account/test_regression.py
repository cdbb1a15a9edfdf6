"""The fit finds what was planted, stays above zero, and is not thrown by single observations."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenllm.energy.account.regression import OnlineFit, solve_nonnegative

PRIOR = (1.0, 1.0, 1.0, 1.0)
seeds = st.integers(0, 2**32)


def _features(chance: random.Random, first: float | None = None) -> list[float]:
    return [
        float(chance.randint(1, 8)) if first is None else first,
        float(chance.randint(1, 32)),
        chance.lognormvariate(1, 1),
        chance.lognormvariate(1, 1),
    ]


def _planted(chance: random.Random) -> list[float]:
    return [chance.uniform(0.2, 5.0) for _ in range(4)]


def _value(planted: Sequence[float], features: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(planted, features, strict=True))


def _learn(fit: OnlineFit, planted: Sequence[float], chance: random.Random, num: int) -> None:
    for _ in range(num):
        features = _features(chance)
        fit.observe(features, _value(planted, features))
        assert min(fit.coefficients) >= 0


@settings(max_examples=8)
@given(seeds)
@example(255)
@example(570)
@example(1073)
def test_the_fit_recovers_what_was_planted(seed: int) -> None:
    chance = random.Random(seed)
    planted, fit = _planted(chance), OnlineFit(PRIOR)
    _learn(fit, planted, chance, 100)
    for _ in range(20):
        features = _features(chance)
        assert fit.predict(features) == pytest.approx(_value(planted, features), rel=0.1)
    # Each coefficient, as far as it matters to a usual observation.
    usual = (4.0, 16.0, 4.5, 4.5)
    for found, truth, feature in zip(fit.coefficients, planted, usual, strict=True):
        assert abs(found - truth) * feature < 0.1 * _value(planted, usual)


@settings(max_examples=8)
@given(seeds)
@example(255)
@example(570)
@example(1073)
def test_the_prediction_error_shrinks(seed: int) -> None:
    chance = random.Random(seed)
    planted, fit = _planted(chance), OnlineFit(PRIOR)
    _learn(fit, planted, chance, 10)
    early = fit.relative_error
    _learn(fit, planted, chance, 110)
    assert fit.relative_error < early
    assert fit.relative_error < 0.05
    assert fit.num_observations == 120


@settings(max_examples=8)
@given(seeds, st.floats(0.05, 0.5))
def test_noise_never_makes_a_coefficient_negative(seed: int, noise: float) -> None:
    chance = random.Random(seed)
    planted, fit = _planted(chance), OnlineFit(PRIOR)
    for _ in range(40):
        features = _features(chance)
        fit.observe(features, _value(planted, features) * chance.lognormvariate(0, noise))
        assert all(0 <= value < math.inf for value in fit.coefficients)


@pytest.mark.parametrize("share", [1e-9, 1e-4, 0.01])
def test_one_observation_of_almost_nothing_does_not_undo_the_fit(share: float) -> None:
    """A little noise above the idle floor is a window of nearly nothing."""
    chance = random.Random(1)
    planted, fit = _planted(chance), OnlineFit(PRIOR)
    _learn(fit, planted, chance, 60)
    features = _features(chance, first=4.0)
    fit.observe(features, _value(planted, features) * share)
    assert fit.predict(features) > 0.5 * _value(planted, features)
    _learn(fit, planted, chance, 40)
    assert fit.predict(features) == pytest.approx(_value(planted, features), rel=0.2)


def test_the_first_observation_sets_the_level_and_the_prior_the_ratios() -> None:
    fit = OnlineFit((4.0, 2.0, 1.0, 1.0))
    fit.observe((1.0, 1.0, 1.0, 1.0), 0.008)
    assert fit.coefficients == pytest.approx((0.004, 0.002, 0.001, 0.001))
    assert fit.relative_error == 0.5, "nothing was predicted yet"


@pytest.mark.parametrize(
    ("features", "value"), [((0.0,) * 4, 1.0), ((1.0,) * 4, 0.0), ((1.0,) * 4, -1.0)]
)
def test_nothing_teaches_nothing(features: Sequence[float], value: float) -> None:
    fit = OnlineFit(PRIOR)
    fit.observe(features, value)
    assert (fit.num_observations, fit.coefficients) == (0, PRIOR)


def test_a_fit_that_is_solved_now_and_then_ends_at_the_same_place() -> None:
    chance, fits = random.Random(3), (OnlineFit(PRIOR), OnlineFit(PRIOR, solve_every=16))
    planted = _planted(chance)
    for _ in range(160):
        features = _features(chance)
        for fit in fits:
            fit.observe(features, _value(planted, features))
    assert fits[1].coefficients == pytest.approx(fits[0].coefficients, rel=0.05)


def test_a_negative_solution_is_cut_at_zero() -> None:
    assert solve_nonnegative([[1.0, 0.0], [0.0, 1.0]], [3.0, -1.0], [1.0, 1.0]) == [3.0, 0.0]
    assert solve_nonnegative([[2.0, 1.0], [1.0, 2.0]], [3.0, 3.0], [0.0, 0.0]) == pytest.approx(
        [1.0, 1.0]
    )


def test_a_coefficient_that_fell_to_zero_is_learnt_again() -> None:
    """What is predicted to be nothing and is something teaches most of all."""
    fit = OnlineFit([1.0, 1.0], memory=0.99)
    for _ in range(40):
        fit.observe([0.05, 0.05], 5.0)
        fit.observe([0.0, 0.1], 12.0)
    assert fit.coefficients[0] == 0
    for _ in range(500):
        fit.observe([0.1, 0.0], 4.0)
    assert fit.coefficients[0] == pytest.approx(40.0, rel=0.1)
