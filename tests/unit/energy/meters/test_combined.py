"""Meters together: what fails is lost by itself, and comes back by itself."""

from collections.abc import Sequence

import pytest

from greenllm.energy.meters.combined import CombinedMeter, parts_of
from greenllm.energy.meters.protocol import NullMeter, Reading, ReplayMeter, SensorError, StillError


class Clock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Steady:
    """Counts a joule a second in its domain, unless something is wrong with it."""

    measured = True
    lag_s = 0.0
    idle_w = None

    def __init__(self, domain: str, clock: Clock, *, period_s: float, uncertainty: float) -> None:
        self.method = f"measured:{domain}"
        self.period_s = period_s
        self.uncertainty = uncertainty
        self.error: SensorError | None = None
        self.gaps: frozenset[str] = frozenset()
        self.held: frozenset[str] = frozenset()
        self._domain = domain
        self._clock = clock

    def read(self) -> Reading:
        if self.error is not None:
            raise self.error
        gaps, self.gaps = self.gaps, frozenset()
        joules = {self._domain: self._clock()}
        return Reading(self._clock(), joules, gaps=gaps, held=gaps & self.held)


class Machine:
    """A GPU and a processor, read together."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gpu = Steady("gpu", self.clock, period_s=0.1, uncertainty=0.2)
        self.cpu = Steady("cpu", self.clock, period_s=0.001, uncertainty=0.05)
        self.meter = CombinedMeter([self.gpu, self.cpu], clock=self.clock)
        self.meter.read()

    def after(self, seconds: float) -> Reading:
        self.clock.now_s += seconds
        return self.meter.read()


def test_combined_meters_merge_domains_and_take_the_first_cpu_times() -> None:
    gpu = ReplayMeter([Reading(1.0, {"gpu": 5.0})], method="a", period_s=0.1, uncertainty=0.2)
    cpu = ReplayMeter(
        [Reading(1.5, {"cpu": 3.0, "dram": 1.0}, 0.5, 2.0)], method="b", measured=False
    )
    both = CombinedMeter([gpu, cpu])
    assert both.read() == Reading(1.5, {"gpu": 5.0, "cpu": 3.0, "dram": 1.0}, 0.5, 2.0)
    assert (both.method, both.measured) == ("a+b", False)
    assert (both.period_s, both.uncertainty) == (0.1, 0.2)


def test_combined_meters_of_one_domain_add() -> None:
    one, two = (ReplayMeter([Reading(0.0, {"gpu": j})]) for j in (2.0, 3.0))
    assert CombinedMeter([one, two]).read() == Reading(0.0, {"gpu": 5.0})


def test_combined_idle_power_is_known_only_when_all_know_theirs() -> None:
    known = ReplayMeter([], idle_w={"cpu": 2.0})
    also = ReplayMeter([], idle_w={"gpu": 30.0})
    assert CombinedMeter([known, also]).idle_w == {"cpu": 2.0, "gpu": 30.0}
    assert CombinedMeter([known, ReplayMeter([])]).idle_w is None
    assert CombinedMeter([]).idle_w is None


def test_parts_of_one_method_are_named_once_and_combined_parts_are_taken_apart() -> None:
    parts = [ReplayMeter([Reading(0.0, {name: 1.0})], method="m") for name in ("cpu", "dram")]
    outer = CombinedMeter([CombinedMeter(parts), NullMeter(lambda: 0.0)])
    assert [type(part) for part in parts_of(outer)] == [ReplayMeter, ReplayMeter, NullMeter]
    assert CombinedMeter(parts).method == "m"


def test_moments_gaps_and_pauses_come_along() -> None:
    one = ReplayMeter(
        [
            Reading(
                2.0,
                {"gpu": 1.0},
                as_of_s={"gpu": 1.9},
                gaps=frozenset({"gpu"}),
                num_faults={"gpu": 3},
            )
        ]
    )
    two = ReplayMeter([Reading(2.1, {"cpu": 1.0}, paused_s=1.0)])
    reading = CombinedMeter([two, one], paused_s=lambda: 30.0).read()
    assert (reading.as_of_s, reading.paused_s) == ({"gpu": 1.9}, 31.0)
    assert reading.gaps == {"gpu"}
    assert reading.num_faults == {"gpu": 3}


def test_a_part_that_fails_for_a_moment_fails_the_reading_and_nothing_is_lost() -> None:
    machine = Machine()
    machine.gpu.error = SensorError("fell off the bus")
    with pytest.raises(SensorError, match="fell off the bus"):
        machine.after(1.0)
    machine.gpu.error = None
    reading = machine.after(1.0)
    assert (reading.joules, reading.lost) == ({"gpu": 2.0, "cpu": 2.0}, {})


@pytest.mark.parametrize(
    ("failing", "left"),
    [
        ("gpu", ("measured:cpu+unknown:gpu", 0.001, 0.05)),
        ("cpu", ("measured:gpu+unknown:cpu", 0.1, 0.2)),
    ],
)
def test_a_part_that_goes_on_failing_is_lost_alone(
    failing: str, left: tuple[str, float, float], caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    getattr(machine, failing).error = SensorError("permission denied")
    for _ in range(5):
        with pytest.raises(SensorError):
            machine.after(1.0)
    for _ in range(3):
        reading = machine.after(1.0)
    other = {"gpu": "cpu", "cpu": "gpu"}[failing]
    assert reading.joules == {other: 8.0}
    assert reading.lost == {failing: "permission denied"}
    meter = machine.meter
    assert (meter.method, meter.period_s, meter.uncertainty) == left
    assert meter.measured
    assert caplog.text.count(f"joules of {failing} are lost: permission denied") == 1


def test_a_part_that_stands_still_is_lost_at_once() -> None:
    machine = Machine()
    machine.cpu.error = StillError(("package-0",), 10.0)
    reading = machine.after(1.0)
    assert reading.joules == {"gpu": 1.0}
    assert reading.lost == {"cpu": "package-0 stands still for 10 s and more"}


def test_a_part_that_comes_back_counts_what_it_missed() -> None:
    machine = Machine()
    machine.gpu.error = StillError(("GPU 0",), 10.0)
    assert machine.after(20.0).joules == {"cpu": 20.0}
    machine.gpu.error = None
    reading = machine.after(1.0)
    assert (reading.joules, reading.lost) == ({"gpu": 21.0, "cpu": 21.0}, {})
    assert machine.meter.method == "measured:gpu+measured:cpu"


def test_with_every_part_lost_nothing_is_known() -> None:
    machine = Machine()
    machine.gpu.error = machine.cpu.error = StillError(("all",), 10.0)
    reading = machine.after(1.0)
    assert (reading.joules, set(reading.lost), reading.at_s) == ({}, {"gpu", "cpu"}, 1.0)
    meter = machine.meter
    assert (meter.method, meter.measured, meter.uncertainty) == ("unknown", False, 1.0)


def test_a_single_meter_is_lost_in_the_same_way() -> None:
    clock = Clock()
    records: Sequence[Reading | None] = [Reading(0.0, {"cpu": 0.0}), None, None, None]
    meter = CombinedMeter([ReplayMeter(records)], clock=clock)
    meter.read()
    with pytest.raises(SensorError, match="recorded sensor failure"):
        meter.read()
    clock.now_s = 6.0
    assert meter.read().lost == {"cpu": "replay: recorded sensor failure"}


def test_joules_of_two_counters_are_of_the_older_moment() -> None:
    """Two parts may count one domain."""
    parts = [
        ReplayMeter([Reading(1.0, {"gpu": 1.0}, as_of_s={"gpu": moment_s})])
        for moment_s in (0.4, 0.7)
    ]
    assert CombinedMeter(parts).read().as_of_s == {"gpu": 0.4}


def test_a_gap_beside_a_failing_part_is_told_later() -> None:
    machine = Machine()
    machine.gpu.gaps = frozenset({"gpu"})
    machine.cpu.error = SensorError("busy")
    with pytest.raises(SensorError):
        machine.after(1.0)
    machine.cpu.error = None
    assert machine.after(1.0).gaps == {"gpu"}
    assert machine.after(1.0).gaps == frozenset()


def test_joules_that_are_only_held_back_are_no_gap_later() -> None:
    machine = Machine()
    machine.gpu.gaps = machine.gpu.held = frozenset({"gpu"})
    reading = machine.after(1.0)
    assert reading.gaps == reading.held == {"gpu"}
    machine.gpu.gaps = frozenset({"gpu"})
    machine.cpu.error = SensorError("busy")
    with pytest.raises(SensorError):
        machine.after(1.0)
    machine.cpu.error = None
    assert machine.after(1.0).gaps == frozenset()


def test_a_domain_that_is_lost_from_the_start_is_in_every_reading() -> None:
    cpu = ReplayMeter([Reading(0.0, {"cpu": 1.0})], method="measured:rapl")
    meter = CombinedMeter([cpu], lost={"gpu": "version mismatch"})
    assert meter.read().lost == {"gpu": "version mismatch"}
    assert meter.method == "measured:rapl+unknown:gpu"
