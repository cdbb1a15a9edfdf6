"""A request's share of a step is its Shapley value, in sums and in what is not a sum."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.account.curve import KNOTS
from greenllm.energy.account.steps import Load, Players, StepModel, prior_seconds, shapley
from greenllm.shape import ModelShape

SHAPE = ModelShape(900, 100, 2, 16, 64)
FLAT = [100.0] * KNOTS
seeds = st.integers(0, 2**32)
Worth = Callable[[float, float], float]
Player = tuple[float, float]


def additive(seconds: float, tokens: float) -> float:
    return 3.0 + seconds


def concave(seconds: float, tokens: float) -> float:
    return float(0.5 * tokens**0.7)


def roofline(seconds: float, tokens: float) -> float:
    return max(4.0, seconds)


def by_definition(players: Sequence[Player], worth: Worth) -> list[float]:
    """The mean over all orders of what each adds to those before it."""
    values = [0.0] * len(players)
    for order in itertools.permutations(range(len(players))):
        before, seconds, tokens = 0.0, 0.0, 0.0
        for place in order:
            seconds, tokens = seconds + players[place][0], tokens + players[place][1]
            now = worth(seconds, tokens)
            values[place] += now - before
            before = now
    return [value / math.factorial(len(players)) for value in values]


def misplaced(found: Sequence[float], truth: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(found, truth, strict=True)) / 2 / sum(truth)


def values_of(players: Sequence[Player], worth: Worth) -> list[float]:
    """One by one; equal ones together."""
    kinds: list[Players] = [(*player, players.count(player)) for player in dict.fromkeys(players)]
    found = dict(zip(dict.fromkeys(players), shapley(kinds, worth), strict=True))
    return [found[player] for player in players]


@settings(max_examples=20)
@given(size=st.integers(2, 7), seed=seeds)
def test_in_a_sum_it_is_ones_own_and_a_part_of_what_is_fixed(size: int, seed: int) -> None:
    chance = random.Random(seed)
    players = [(chance.uniform(0, 5), float(chance.randint(1, 40))) for _ in range(size)]
    expected = [3.0 / size + seconds for seconds, _ in players]
    assert values_of(players, additive) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("worth", [concave, roofline])
@pytest.mark.parametrize(
    "players",
    [
        [(1.0, 1.0), (1.0, 1.0)],
        [(1.0, 1.0), (6.0, 32.0)],
        [(0.5, 1.0)] * 5 + [(6.0, 32.0)],
        [(0.5, 1.0), (1.0, 2.0), (1.5, 4.0), (2.0, 8.0), (3.0, 16.0)],
    ],
)
def test_what_is_not_a_sum_is_met_closely(players: list[Player], worth: Worth) -> None:
    assert misplaced(values_of(players, worth), by_definition(players, worth)) < 0.05


def test_shares_are_one_in_all_and_one_alone_has_all() -> None:
    model = StepModel(SHAPE)
    loads = [Load(1, 0, 0, 2000.0, 64.0, 1.0), Load(1, 1, 0, 9000.0, 640.0, 8.0)]
    assert model.shares(loads[:1], FLAT) == [1.0]
    small, large = model.shares(loads, FLAT)
    assert small + large == pytest.approx(1.0)
    assert 0 < small < large


def test_times_of_steps_teach_what_a_prompt_costs_by_itself() -> None:
    """A step takes 2 ms, a sequence 0.1 ms, a prompt 5 ms however short it is."""
    model, chance = StepModel(SHAPE), random.Random(5)
    for _ in range(400):
        prompts, tokens = chance.choice([0, 0, 0, 1]), chance.randint(1, 12)
        total = Load(tokens + prompts, prompts, 0, 2000.0 * tokens, 64.0 * tokens, tokens + prompts)
        model.learn(total, 0.002 + 0.0001 * (tokens + prompts) + 0.005 * prompts)
    assert model.relative_error < 0.05
    with_prompt = model.own_s(Load(1, 1, 0, 2000.0, 64.0, 1.0))
    without = model.own_s(Load(1, 0, 0, 2000.0, 64.0, 1.0))
    assert with_prompt - without == pytest.approx(0.005, rel=0.1)


def test_power_that_grows_with_width_is_owed_by_those_who_widen() -> None:
    model = StepModel(SHAPE)
    loads = [Load(1, 0, 0, 2000.0, 64.0, 1.0)] * 3 + [Load(1, 1, 0, 2000.0, 64.0, 64.0)]
    flat = model.shares(loads, FLAT)
    growing = model.shares(loads, [100.0 + 2**knot for knot in range(KNOTS)])
    assert growing[3] > flat[3]
    assert growing[0] == growing[1] < flat[0]


def test_the_prior_is_mostly_reading_the_weights_and_never_zero() -> None:
    assert prior_seconds(SHAPE, flops_per_byte=8.0) == (8000.0, 400.0, 400.0, 400.0, 1.0, 8.0)
    assert min(prior_seconds(ModelShape(0, 0, 0, 0, 0))) >= 1
