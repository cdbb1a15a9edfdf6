"""A meter whose counters are followed between readings, by a thread that the test can be."""

import threading

import pytest

from greenllm.energy.meters import tracked, weakly
from greenllm.energy.meters.protocol import SensorError
from greenllm.energy.meters.track import Tracks
from greenllm.energy.meters.tracked import TrackedMeter
from tests.waiting import until


class Counter:
    """A counter and the clock beside it."""

    name = "one"
    largest_w = 100.0
    wraps_at_j = 1000.0

    def __init__(self) -> None:
        self.now_s = self.joules = 0.0
        self.num_looks = 0

    def clock(self) -> float:
        return self.now_s

    def wait_for_a_look(self) -> None:
        """One that began after this was called."""
        seen = self.num_looks + 1
        until(lambda: self.num_looks > seen, "a look")

    def read_j(self) -> float:
        self.num_looks += 1
        return self.joules


class Meter(TrackedMeter):
    method = "measured:test"
    uncertainty = 0.05

    def __init__(self, counter: Counter, *, looks: bool = False, period_s: float = 0.1) -> None:
        self.period_s = period_s
        tracks = Tracks([counter], period_s=period_s, clock=counter.clock)
        wait_s = (lambda *ages_s: 0.001) if looks else None
        super().__init__("cpu", tracks, clock=counter.clock, wait_s=wait_s)


def test_wraps_between_two_readings_are_followed() -> None:
    """Whoever reads once in a quarter of an hour sees neither of them."""
    counter = Counter()
    meter = Meter(counter, looks=True)
    for joules in (400.0, 800.0, 200.0, 600.0, 0.0, 400.0):
        counter.now_s += 5.0
        counter.joules = joules
        counter.wait_for_a_look()
    counter.now_s += 1.0
    assert meter.read().joules["cpu"] >= 2000.0


def test_a_glitch_between_two_readings_is_counted_and_no_gap() -> None:
    """What the counter says afterwards is true."""
    counter = Counter()
    meter = Meter(counter, looks=True)
    for joules in (1e9, 10.0):
        counter.now_s += 1.0
        counter.joules = joules
        counter.wait_for_a_look()
    reading = meter.read()
    assert reading.joules == {"cpu": 10.0}
    assert reading.num_faults == {"cpu": 1}
    assert not reading.gaps


def test_a_glitch_in_a_reading_leaves_what_was_counted_before_it_true() -> None:
    """The thread has seen the tick; the reading sees the glitch."""
    counter = Counter()
    meter = Meter(counter, looks=True)
    counter.now_s, counter.joules = 1.0, 10.0
    counter.wait_for_a_look()
    quiet = Meter(counter)
    counter.now_s, counter.joules = 2.0, 1e9
    reading = meter.read()
    assert reading.joules == {"cpu": 10.0}
    assert reading.gaps == reading.held == {"cpu"}
    counter.now_s = 3.0
    assert quiet.read().held == {"cpu"}
    counter.now_s = 4.0
    confirmed = quiet.read()
    assert confirmed.gaps == {"cpu"}, "what was used meanwhile is not known"
    assert confirmed.held == frozenset()


def test_the_moment_of_the_joules_never_goes_back() -> None:
    counter = Counter()
    meter = Meter(counter)
    moments = []
    for now_s, joules in ((0.02, 0.0), (0.04, 1.0), (0.3, 2.0), (0.31, 2.0), (0.4, 3.0)):
        counter.now_s, counter.joules = now_s, joules
        moments.append(meter.read().as_of_s["cpu"])
    assert moments == sorted(moments)
    assert moments[-1] <= 0.4


def test_a_fine_counter_that_pauses_does_not_take_back_that_it_was_read_now() -> None:
    counter = Counter()
    meter = Meter(counter, period_s=0.001)
    counter.now_s, counter.joules = 0.1, 1.0
    assert meter.read().as_of_s == {}, "of the moment at which it is read"
    counter.now_s += 0.004
    assert meter.read().as_of_s == {}
    counter.now_s += 0.1
    assert meter.read().as_of_s == {"cpu": pytest.approx(0.104)}


def test_a_meter_that_is_read_rarely_does_not_take_a_reset_for_standing_still() -> None:
    counter = Counter()
    counter.joules = 900.0
    meter = Meter(counter)
    counter.now_s, counter.joules = 60.0, 5.0
    assert meter.read().joules == {"cpu": 0.0}
    counter.now_s, counter.joules = 61.0, 15.0
    assert meter.read().joules["cpu"] > 0


def test_a_driver_that_hangs_between_readings_does_not_hang_its_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracked, "_PATIENCE_S", 0.01)
    counter, hangs, may_go_on = Counter(), threading.Event(), threading.Event()
    meter = Meter(counter, looks=True)

    def read_j() -> float:
        hangs.set()
        may_go_on.wait(60)
        return counter.joules

    counter.read_j = read_j  # type: ignore[method-assign]
    assert hangs.wait(60)
    with pytest.raises(SensorError, match="has not answered"):
        meter.read()
    may_go_on.set()
    until(lambda: meter.read() is not None, "a reading")


def test_a_thread_goes_on_after_an_error_that_nobody_expected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weakly, "_AFTER_ERROR_S", 0.001)
    turns: list[int] = []

    class Worker:
        def turn(self) -> float:
            turns.append(1)
            if len(turns) == 1:
                raise RuntimeError("what the driver never does")
            return 0.001

    worker = Worker()
    weakly.repeat("counter", worker.turn)
    until(lambda: len(turns) > 2, "a turn after the error")
    assert "what the driver never does" in caplog.text
