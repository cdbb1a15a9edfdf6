"""The floor of a machine, learnt from windows in which this server did nothing."""

import pytest

from greenllm.energy.account.idle import IdlePower
from greenllm.energy.meters.protocol import Reading


def test_idle_power_that_is_known_is_not_learnt() -> None:
    idle = IdlePower({"cpu": 3.0})
    idle.learn(10.0, {"cpu": 1000.0})
    assert (idle.watts, idle.error_w("cpu")) == ({"cpu": 3.0}, 0.0)


def test_short_windows_are_put_together_until_they_say_something() -> None:
    idle = IdlePower(None)
    for _ in range(3):
        idle.learn(0.1, {"cpu": 1.0})
    assert idle.watts == {}
    idle.learn(0.2, {"cpu": 2.0})
    assert idle.watts == pytest.approx({"cpu": 10.0})


def test_a_floor_learnt_under_load_is_unlearnt() -> None:
    idle = IdlePower(None)
    idle.learn(1.0, {"cpu": 100.0})
    for _ in range(30):
        idle.learn(1.0, {"cpu": 10.0, "gpu": 30.0})
    assert idle.watts == pytest.approx({"cpu": 10.0, "gpu": 30.0})


def test_a_burst_of_somebody_else_does_not_raise_the_floor() -> None:
    idle = IdlePower(None)
    for number in range(30):
        idle.learn(1.0, {"cpu": 60.0 if number % 3 == 0 else 20.0})
    assert idle.watts == {"cpu": 20.0}


def test_busy_seconds_of_others_explain_their_part_of_the_power() -> None:
    """A package that idles at 20 W and takes 15 W for a busy CPU, never quite idle."""
    idle = IdlePower(None)
    for number in range(30):
        busy = 0.3 + (number % 7) / 4
        idle.learn(1.0, {"cpu": 20.0 + 15.0 * busy}, busy_s=busy)
    assert idle.watts["cpu"] == pytest.approx(20.0)


def test_a_tick_of_others_now_and_then_is_not_the_machine() -> None:
    """The floor is the machine's, whatever this process had of the little CPU time."""
    idle = IdlePower(None)
    before = Reading(0.0, {"cpu": 0.0}, own_cpu_s=0.0, machine_cpu_s=0.0)
    for number in range(1, 20):
        now = Reading(0.5 * number, {"cpu": 10.0 * number}, 0.003 * number, 0.013 * number)
        idle.learn_between(before, now)
        before = now
    assert idle.watts["cpu"] == pytest.approx(20.0)


def test_the_error_of_a_floor_falls_with_the_windows() -> None:
    idle = IdlePower(None)
    assert idle.error_w("cpu") == 0
    errors = []
    for number in range(24):
        idle.learn(1.0, {"cpu": 20.0 + number % 2})
        errors.append(idle.error_w("cpu"))
    assert errors[0] > errors[5] > errors[-1] > 0


def test_a_domain_that_comes_back_has_the_floor_that_was_learnt() -> None:
    """While a GPU is lost the rest may know its idle power: that says nothing of the GPU."""
    idle = IdlePower(None)
    idle.learn(1.0, {"cpu": 20.0, "gpu": 70.0})
    idle.know({"cpu": 21.0})
    idle.learn(1.0, {"cpu": 50.0})
    assert idle.watts == {"cpu": 21.0, "gpu": 70.0}
    idle.know(None)
    for _ in range(30):
        idle.learn(1.0, {"cpu": 20.0, "gpu": 60.0})
    assert idle.watts == {"cpu": 20.0, "gpu": 60.0}
    assert idle.error_w("gpu") > 0
