"""`auto` finds the cheapest way of guessing, keeps to it, and notices when it changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from greenllm.core import Speculation, SpeculativeMethod
from greenllm.speculation.controller import TRIAL_STEPS, Controller, StepCost, bucket_of

OFF = Speculation("off")
LOOKUP = Speculation("prompt_lookup", 4)
EXIT = Speculation("early_exit", 3)
CHOICES = (OFF, LOOKUP, EXIT)


@dataclass(frozen=True)
class World:
    """A machine: seconds of a step of each method, and how likely a guess comes true."""

    step_s: dict[SpeculativeMethod, float]
    chance: dict[SpeculativeMethod, float]

    def step(self, choice: Speculation, batch_size: int, rng: random.Random) -> StepCost:
        """One step, with 5 % of noise in its time."""
        drafted = 0 if choice.method == "off" else choice.num_tokens * batch_size
        accepted = 0
        for _ in range(batch_size if drafted else 0):
            while accepted < drafted and rng.random() < self.chance[choice.method]:
                accepted += 1
        duration_s = self.step_s[choice.method] * rng.uniform(0.95, 1.05)
        return StepCost(duration_s, batch_size + accepted, drafted, accepted)


def run(
    controller: Controller, world: World, steps: int, batch_size: int = 1, seed: int = 1
) -> tuple[float, dict[SpeculativeMethod, int]]:
    """Seconds per token over so many steps, and how often each method was used."""
    rng, used = random.Random(seed), dict.fromkeys(("off", "prompt_lookup", "early_exit"), 0)
    seconds = tokens = 0.0
    for _ in range(steps):
        choice = controller.choose(batch_size)
        step = world.step(choice, batch_size, rng)
        controller.learn(batch_size, step)
        used[choice.method] += 1
        seconds, tokens = seconds + step.duration_s, tokens + step.num_tokens
    return seconds / tokens, used  # type: ignore[return-value]


def alone(world: World, choice: Speculation, batch_size: int = 1) -> float:
    """Seconds per token of one choice, always."""
    rng = random.Random(9)
    steps = [world.step(choice, batch_size, rng) for _ in range(4000)]
    return sum(s.duration_s for s in steps) / sum(s.num_tokens for s in steps)


PAYS = World(
    {"off": 1.0, "prompt_lookup": 1.2, "early_exit": 1.9},
    {"prompt_lookup": 0.1, "early_exit": 0.8},
)
COPIES = World(
    {"off": 1.0, "prompt_lookup": 1.2, "early_exit": 1.9},
    {"prompt_lookup": 0.95, "early_exit": 0.8},
)
LOSES = World(
    {"off": 1.0, "prompt_lookup": 1.3, "early_exit": 2.5},
    {"prompt_lookup": 0.05, "early_exit": 0.5},
)


@pytest.mark.parametrize(("size", "bucket"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (31, 16)])
def test_batch_sizes_are_told_apart_by_powers_of_two(size: int, bucket: int) -> None:
    assert bucket_of(size) == bucket


@pytest.mark.parametrize(
    ("world", "best"), [(PAYS, EXIT), (COPIES, LOOKUP), (LOSES, OFF)], ids=["pays", "copies", "no"]
)
@pytest.mark.parametrize("seed", range(5))
def test_it_comes_close_to_the_cheapest(world: World, best: Speculation, seed: int) -> None:
    controller = Controller(CHOICES)
    run(controller, world, 600, seed=seed)
    cost_s, used = run(controller, world, 3000, seed=seed + 100)
    assert used[best.method] > 0.8 * 3000
    assert cost_s < 1.05 * alone(world, best)


def test_where_guessing_does_not_pay_it_costs_little_from_the_first_step() -> None:
    cost_s, _ = run(Controller(CHOICES), LOSES, 2000)
    assert cost_s < 1.03 * alone(LOSES, OFF)


def test_a_trial_that_goes_badly_ends_early() -> None:
    many = (OFF, *(Speculation("early_exit", n) for n in (2, 3, 4)), Speculation("prompt_lookup"))
    world = World(
        {"off": 1.0, "prompt_lookup": 3.0, "early_exit": 3.0},
        {"prompt_lookup": 0.01, "early_exit": 0.01},
    )
    cost_s, _ = run(Controller(many), world, 1000)
    assert cost_s < 1.12 * alone(world, OFF)


def test_a_trial_does_not_outlast_steps_that_teach_nothing() -> None:
    controller = Controller((OFF, EXIT))
    run(controller, LOSES, TRIAL_STEPS + 2)
    assert controller.choose(1) == EXIT
    for _ in range(TRIAL_STEPS + 2):
        controller.skip(1)
    assert controller.choose(1) == OFF


def test_steps_that_teach_nothing_leave_no_state() -> None:
    controller = Controller(CHOICES)
    controller.skip(4)
    assert controller.state() == {}


def test_it_notices_when_the_cheapest_changes() -> None:
    controller = Controller(CHOICES)
    run(controller, PAYS, 1000)
    run(controller, COPIES, 3000, seed=2)
    _, used = run(controller, COPIES, 1000, seed=3)
    assert used["prompt_lookup"] > 800
    run(controller, LOSES, 600, seed=4)
    _, used = run(controller, LOSES, 1000, seed=5)
    assert used["off"] > 800


def test_a_new_size_begins_with_the_best_of_the_nearest() -> None:
    controller = Controller(CHOICES)
    assert controller.choose(1) == OFF
    run(controller, PAYS, 1000, batch_size=1)
    run(controller, LOSES, 1000, batch_size=32)
    assert controller.choose(4).method == "early_exit"
    assert controller.choose(16) == OFF


def test_each_batch_size_learns_for_itself() -> None:
    controller = Controller(CHOICES)
    run(controller, PAYS, 1000, batch_size=1)
    run(controller, LOSES, 1000, batch_size=16)
    best: Callable[[int], str] = lambda size: controller.state()[size][0].choice.method  # noqa: E731
    assert (best(1), best(16)) == ("early_exit", "off")


def test_its_state_says_what_was_seen() -> None:
    controller = Controller(CHOICES)
    run(controller, PAYS, 1500)
    arms = {arm.choice.method: arm for arm in controller.state()[1]}
    assert arms["off"].cost_s == pytest.approx(1.0, rel=0.05)
    assert arms["off"].acceptance is None
    assert arms["early_exit"].cost_s == pytest.approx(alone(PAYS, EXIT), rel=0.1)
    assert arms["early_exit"].acceptance == pytest.approx(0.65, abs=0.1)
    assert Controller((OFF,)).choose(1) == OFF


def test_steps_without_a_token_cost_nothing_that_is_known() -> None:
    controller = Controller((OFF, LOOKUP))
    controller.learn(1, StepCost(1.0, 0, 0, 0))
    assert [arm.cost_s for arm in controller.state()[1]] == [None, None]
    assert controller.choose(2) == OFF
