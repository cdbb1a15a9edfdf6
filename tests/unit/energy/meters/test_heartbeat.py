"""Stops and suspensions are noticed; being busy or a little late is neither."""

import gc
import threading

import pytest

from greenllm.energy.meters.heartbeat import Heartbeat
from tests.waiting import until


class Times:
    """Three clocks moved by hand."""

    def __init__(self) -> None:
        self.now_s = self.boot_s = self.cpu_s = 0.0
        self.heart = Heartbeat(
            clock=lambda: self.now_s,
            boot_clock=lambda: self.boot_s,
            cpu_s=lambda: self.cpu_s,
            is_alone=True,
        )

    def after(self, seconds: float, *, asleep_s: float = 0.0, used_s: float = 0.0) -> float:
        self.now_s += seconds
        self.boot_s += seconds + asleep_s
        self.cpu_s += used_s
        return self.heart.paused_s()


def test_a_process_that_was_stopped_knows_for_how_long() -> None:
    times = Times()
    assert times.after(0.25) == 0
    assert times.after(30.25) == pytest.approx(30.0)
    assert times.after(0.25) == pytest.approx(30.0)


def test_a_machine_that_was_suspended_counts_too() -> None:
    assert Times().after(0.25, asleep_s=3600.0) == pytest.approx(3600.0)


def test_a_late_beat_is_no_pause() -> None:
    assert Times().after(2.0) == 0


def test_a_process_that_was_busy_was_not_stopped() -> None:
    """A library that holds the interpreter's lock keeps the heart from beating."""
    assert Times().after(10.0, used_s=9.0) == 0


def test_it_beats_by_itself_until_nobody_needs_it() -> None:
    beats = threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            beats.set()
        return 0.0

    heart = Heartbeat(clock=clock)
    until(beats.is_set, "a beat")
    assert heart.paused_s() == 0
    threads = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    del heart
    gc.collect()
    until(lambda: not any(thread.is_alive() for thread in threads[-1:]), "its end")
