"""The simulated machine and its meters: what they show of joules that are known."""

from __future__ import annotations

import random
from typing import Any

import pytest

from evals.studies.truth.machine import Machine
from evals.studies.truth.meters import (
    DOMAIN,
    KINDS,
    Glitch,
    LaggingMeter,
    SimulatedMeter,
    make_meter,
    random_glitches,
)
from greenllm.energy.meters.protocol import SensorError


def joules(meter: SimulatedMeter) -> float:
    return meter.read().joules[DOMAIN]


def counter(machine: Machine, **how: Any) -> SimulatedMeter:
    return SimulatedMeter(machine, period_s=0.1, **how)


def test_power_is_idle_power_and_what_is_computed() -> None:
    machine = Machine(idle_w=50.0)
    start_s = machine.now_s
    machine.rest(2.0)
    machine.spend(1.0, 100.0)
    assert machine.now_s == start_s + 3.0
    assert machine.joules_at(start_s + 2.5) == pytest.approx(2.5 * 50 + 50)
    assert machine.joules_at(machine.now_s) == pytest.approx(3 * 50 + 100)
    assert machine.joules_at(start_s - 1) == -50.0


def test_a_counter_shows_its_last_tick_and_when_it_was_seen() -> None:
    machine = Machine(idle_w=100.0)
    start_s, meter = machine.now_s, counter(machine, phase_s=0.032)
    machine.rest(0.25)
    reading = meter.read()
    assert reading.joules[DOMAIN] == pytest.approx(100 * 0.232, abs=0.01)
    assert reading.at_s == machine.now_s
    assert reading.as_of_s[DOMAIN] == pytest.approx(start_s + 0.235)
    machine.rest(0.05)
    assert joules(meter) == reading.joules[DOMAIN]
    machine.rest(0.0325)
    seen = meter.read()
    assert seen.joules[DOMAIN] == pytest.approx(100 * 0.332, abs=0.01)
    assert seen.as_of_s[DOMAIN] == machine.now_s


def test_a_counter_need_not_say_when_it_ticked() -> None:
    machine = Machine()
    machine.rest(1.0)
    assert counter(machine, stamps=False).read().as_of_s == {}


def test_an_average_of_power_lags_but_forgets_nothing() -> None:
    machine = Machine(idle_w=100.0)
    meter = LaggingMeter(machine)
    before_j = joules(meter)
    machine.spend(0.5, 200.0)
    early_j = joules(meter) - before_j
    machine.rest(2.0)
    assert early_j < 200.0
    assert joules(meter) - before_j == pytest.approx(2.5 * 100 + 200, rel=0.01)


def test_sensors_fail_stand_and_jump_when_told_to() -> None:
    machine = Machine(idle_w=100.0)
    now_s = machine.now_s
    glitches = [
        Glitch("fails", now_s + 1, now_s + 2),
        Glitch("stands", now_s + 3, now_s + 4),
        Glitch("jumps", now_s + 5, now_s + 5, 40.0),
    ]
    meter = counter(machine, glitches=glitches)
    start_j = joules(meter)
    machine.rest(1.5)
    with pytest.raises(SensorError, match="fails"):
        meter.read()
    machine.rest(2.05)
    stood_j = joules(meter)
    assert stood_j - start_j == pytest.approx(300, abs=0.01)
    machine.rest(0.3)
    assert joules(meter) == stood_j
    machine.rest(2.2)
    jumped = meter.read()
    assert jumped.joules[DOMAIN] - start_j == pytest.approx(640, abs=0.01)
    assert jumped.gaps == {DOMAIN}
    assert meter.read().gaps == frozenset()
    assert meter.told_j == pytest.approx(640, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_counts_what_the_machine_used(kind: str) -> None:
    machine, source = Machine(), random.Random(3)
    meter = make_meter(kind, machine, source, stamps=True, glitches=())
    before_j = joules(meter)
    for _ in range(400):
        machine.spend(0.05, 10.0)
        reading = meter.read()
        assert reading.as_of_s.get(DOMAIN, reading.at_s) <= machine.now_s
    assert joules(meter) - before_j == pytest.approx(20 * 70 + 4000, rel=0.08)


def test_glitches_are_as_many_as_were_asked_for() -> None:
    found = random_glitches(random.Random(1), 10.0, 20.0, 2)
    assert sorted(glitch.kind for glitch in found) == ["fails"] * 2 + ["jumps"] * 2 + ["stands"] * 2
    assert all(10.0 <= glitch.from_s <= 20.0 for glitch in found)
