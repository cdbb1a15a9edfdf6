"""The closed form is the Shapley value; shares add up; the fit finds what was planted."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenllm.energy.account.attribution import (
    CoefficientFit,
    Coefficients,
    Work,
    prior_coefficients,
    solve_nonnegative,
    split,
    total_work,
)
from greenllm.shape import ModelShape

PRIOR = Coefficients(1.0, 1.0, 1.0, 1.0)
weight = st.floats(0, 1e12)
seeds = st.integers(0, 2**32)


def _shapley(cost: Callable[[Sequence[int]], float], size: int) -> list[float]:
    """By definition: the mean over all orders of what each adds to those before it."""
    values = [0.0] * size
    for order in itertools.permutations(range(size)):
        for place, player in enumerate(order):
            values[player] += cost(order[: place + 1]) - cost(order[:place])
    return [value / math.factorial(size) for value in values]


def _random_work(chance: random.Random, *, steps: float = 1.0) -> Work:
    return Work(
        steps=steps,
        rows=float(chance.randint(1, 32)),
        flops=chance.lognormvariate(1, 1),
        kv_bytes=chance.lognormvariate(1, 1),
    )


def _random_coefficients(chance: random.Random) -> Coefficients:
    return Coefficients(*(chance.uniform(0.2, 5.0) for _ in range(4)))


@settings(max_examples=20)
@given(size=st.integers(2, 6), seed=seeds)
def test_the_share_of_a_step_is_its_shapley_value(size: int, seed: int) -> None:
    chance = random.Random(seed)
    coefficients = _random_coefficients(chance)
    works = [_random_work(chance, steps=1 / size) for _ in range(size)]
    alone = [coefficients.predict_j(Work(0.0, *work.features[1:])) for work in works]

    def cost(members: Sequence[int]) -> float:
        fixed_j = coefficients.step_j if members else 0.0
        return fixed_j + sum(alone[member] for member in members)

    shares = split(cost(range(size)), [coefficients.predict_j(work) for work in works])
    assert shares == pytest.approx(_shapley(cost, size), rel=1e-9)


def test_a_request_without_work_pays_its_part_of_the_fixed_cost_and_nothing_more() -> None:
    coefficients = Coefficients(8.0, 1.0, 1.0, 1.0)
    dummy, busy = Work(steps=0.5), Work(0.5, 3.0, 10.0, 7.0)
    shares = split(28.0, [coefficients.predict_j(work) for work in (dummy, busy)])
    assert shares == pytest.approx([4.0, 24.0])


@given(weight, st.lists(weight, min_size=1, max_size=64))
def test_shares_add_up_and_are_never_negative(total: float, weights: list[float]) -> None:
    shares = split(total, weights)
    assert len(shares) == len(weights)
    assert abs(sum(shares) - total) <= 4 * math.ulp(total)
    assert min(shares) >= 0


@given(weight, st.lists(weight, min_size=1, max_size=16), seeds)
def test_shares_follow_their_weights_in_any_order(
    total: float, weights: list[float], seed: int
) -> None:
    order = list(range(len(weights)))
    random.Random(seed).shuffle(order)
    shares = split(total, weights)
    assert split(total, [weights[i] for i in order]) == pytest.approx(
        [shares[i] for i in order], rel=1e-9, abs=1e-300
    )


def test_the_rounding_is_not_lost() -> None:
    shares = split(1.0, [1.0] * 10)
    assert sum([0.1] * 10) != 1.0, "ten plain tenths fall short"
    assert sum(shares) == 1.0


def test_nobody_shares_nothing_and_zero_weights_share_equally() -> None:
    assert split(5.0, []) == []
    assert split(6.0, [0.0, 0.0, 0.0]) == [2.0, 2.0, 2.0]


@given(st.integers(1, 32), seeds)
def test_the_predicted_cost_of_a_step_does_not_depend_on_who_did_the_work(
    size: int, seed: int
) -> None:
    chance = random.Random(seed)
    coefficients, whole = _random_coefficients(chance), _random_work(chance)
    parts = [
        Work(1 / size, whole.rows / size, whole.flops / size, whole.kv_bytes / size)
        for _ in range(size)
    ]
    together_j = coefficients.predict_j(total_work(parts))
    assert together_j == pytest.approx(coefficients.predict_j(whole))
    assert sum(map(coefficients.predict_j, parts)) == pytest.approx(together_j)


def test_work_adds_every_part() -> None:
    assert total_work([Work(1, 2, 3, 4, 5), Work(10, 20, 30, 40, 50)]) == Work(11, 22, 33, 44, 55)
    assert total_work([]) == Work()


def _learn(fit: CoefficientFit, planted: Coefficients, chance: random.Random, num: int) -> None:
    for _ in range(num):
        work = _random_work(chance, steps=float(chance.randint(1, 8)))
        fit.observe(work, planted.predict_j(work))
        assert min(fit.coefficients.values) >= 0


@settings(max_examples=8)
@given(seeds)
@example(255)
@example(570)
@example(1073)
def test_the_fit_recovers_what_was_planted(seed: int) -> None:
    chance = random.Random(seed)
    planted, fit = _random_coefficients(chance), CoefficientFit(PRIOR)
    _learn(fit, planted, chance, 100)
    for _ in range(20):
        work = _random_work(chance, steps=float(chance.randint(1, 8)))
        assert fit.coefficients.predict_j(work) == pytest.approx(planted.predict_j(work), rel=0.1)
    # Each coefficient, as far as it matters to a usual window.
    usual = Work(4.0, 16.0, 4.5, 4.5)
    for found, truth, feature in zip(
        fit.coefficients.values, planted.values, usual.features, strict=True
    ):
        assert abs(found - truth) * feature < 0.1 * planted.predict_j(usual)


@settings(max_examples=8)
@given(seeds)
@example(255)
@example(570)
@example(1073)
def test_the_prediction_error_shrinks(seed: int) -> None:
    chance = random.Random(seed)
    planted, fit = _random_coefficients(chance), CoefficientFit(PRIOR)
    _learn(fit, planted, chance, 10)
    early = fit.relative_error
    _learn(fit, planted, chance, 90)
    assert fit.relative_error < early
    assert fit.relative_error < 0.05
    assert fit.num_windows == 100


@settings(max_examples=8)
@given(seeds, st.floats(0.05, 0.5))
def test_noisy_windows_never_make_a_coefficient_negative(seed: int, noise: float) -> None:
    chance = random.Random(seed)
    planted, fit = _random_coefficients(chance), CoefficientFit(PRIOR)
    for _ in range(40):
        work = _random_work(chance)
        fit.observe(work, planted.predict_j(work) * chance.lognormvariate(0, noise))
        assert all(0 <= value < math.inf for value in fit.coefficients.values)


@pytest.mark.parametrize("share", [1e-9, 1e-4, 0.01])
def test_one_window_of_almost_no_joules_does_not_undo_the_fit(share: float) -> None:
    """A little noise above the idle floor is a window of nearly nothing."""
    chance = random.Random(1)
    planted, fit = _random_coefficients(chance), CoefficientFit(PRIOR)
    _learn(fit, planted, chance, 60)
    work = _random_work(chance, steps=4.0)
    fit.observe(work, planted.predict_j(work) * share)
    assert fit.coefficients.predict_j(work) > 0.5 * planted.predict_j(work)
    _learn(fit, planted, chance, 40)
    assert fit.coefficients.predict_j(work) == pytest.approx(planted.predict_j(work), rel=0.2)


def test_the_first_window_sets_the_level_and_the_prior_the_ratios() -> None:
    fit = CoefficientFit(Coefficients(4.0, 2.0, 1.0, 1.0))
    work = Work(1.0, 1.0, 1.0, 1.0)
    fit.observe(work, 0.008)
    assert fit.coefficients.values == pytest.approx((0.004, 0.002, 0.001, 0.001, 0.0))
    assert fit.relative_error == 0.5, "nothing was predicted yet"


def test_a_prior_that_predicts_nothing_keeps_its_level() -> None:
    fit = CoefficientFit(Coefficients(0.0, 0.0, 0.0, 1.0))
    fit.scale_prior(Work(steps=1.0), 5.0)
    assert fit.coefficients.byte_j == 1.0


@pytest.mark.parametrize(("work", "energy_j"), [(Work(), 1.0), (Work(1, 1, 1, 1), 0.0)])
def test_windows_without_work_or_energy_teach_nothing(work: Work, energy_j: float) -> None:
    fit = CoefficientFit(PRIOR)
    fit.observe(work, energy_j)
    assert fit.num_windows == 0
    assert fit.coefficients == PRIOR


def test_a_negative_solution_is_cut_at_zero() -> None:
    assert solve_nonnegative([[1.0, 0.0], [0.0, 1.0]], [3.0, -1.0], [1.0, 1.0]) == [3.0, 0.0]
    assert solve_nonnegative([[2.0, 1.0], [1.0, 2.0]], [3.0, 3.0], [0.0, 0.0]) == pytest.approx(
        [1.0, 1.0]
    )


def test_the_prior_is_mostly_reading_the_weights_and_never_zero() -> None:
    shape = ModelShape(900, 100, 2, 16, 64)
    prior = prior_coefficients(shape, flops_per_byte=8.0)
    assert prior == Coefficients(8000.0, 400.0, 1.0, 8.0, 400.0)
    assert min(prior_coefficients(ModelShape(0, 0, 0, 0, 0)).values) >= 1
