"""NVML through a fake driver: counters, integrated power, and what fails."""

import sys
import threading
from typing import Any

import pytest

from greenllm.energy.meters.nvml import NvmlMeter, load_nvml, nvml_meter
from greenllm.energy.meters.nvml_devices import Device, Found
from greenllm.energy.meters.protocol import Reading, SensorError, StillError
from greenllm.energy.meters.scope import Scope
from tests.unit.energy.meters.driver import Driver
from tests.waiting import PATIENCE_S

MJ = 22_000_000_000


class Clock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Board:
    """One board with a counter, read at moments that the test chooses."""

    def __init__(self, mj: int) -> None:
        self.clock, self.driver = Clock(), Driver(energy_mj=[mj])
        self.meter = NvmlMeter(self.driver, clock=self.clock, poll_s=None)

    def after(self, seconds: float, mj: int | None) -> Reading:
        self.clock.now_s += seconds
        self.driver.energy_mj = [mj]
        return self.meter.read()


def test_the_energy_counter_is_taken_from_the_start_of_the_meter() -> None:
    board = Board(5_000_000)
    assert board.meter.method == "measured:nvml-energy"
    assert board.meter.read().joules == {"gpu": 0}
    reading = board.after(3.0, 5_002_500)
    assert reading.at_s == 3.0
    assert reading.joules == pytest.approx({"gpu": 2.5})
    assert (board.meter.measured, board.meter.idle_w, reading.own_cpu_s) == (True, None, None)
    assert (board.meter.lag_s, board.meter.period_s) == (0.0, 0.1)


def test_one_reading_of_200_joules_adds_only_what_is_true() -> None:
    board = Board(MJ)
    glitch = board.after(1.0, 200_000)
    assert glitch.total_j == 0
    assert glitch.gaps == {"gpu"}
    back = board.after(1.0, MJ + 100_000)
    assert back.total_j == pytest.approx(100.0)
    assert not back.gaps
    assert (glitch.num_faults, back.num_faults) == ({"gpu": 1}, {"gpu": 1})


def test_one_reading_of_nonsense_adds_nothing() -> None:
    board = Board(MJ)
    assert board.after(1.0, 2**63).gaps == {"gpu"}
    assert board.after(1.0, MJ + 100_000).total_j == pytest.approx(100.0)


def test_a_driver_that_is_loaded_again_goes_on_from_zero() -> None:
    board = Board(MJ)
    assert board.after(1.0, MJ + 90_000).total_j == pytest.approx(90.0)
    board.after(1.0, 10_000)
    assert board.after(0.05, 15_000).total_j == pytest.approx(90.0), "less than a period later"
    confirmed = board.after(0.1, 25_000)
    assert confirmed.total_j == pytest.approx(115.0)
    assert confirmed.gaps == {"gpu"}
    assert confirmed.num_faults == {"gpu": 1}
    assert board.after(1.0, 125_000).total_j == pytest.approx(215.0)


def test_between_ticks_joules_and_their_moment_repeat() -> None:
    board = Board(MJ)
    board.after(0.10, MJ)
    ticked = board.after(0.02, MJ + 9_000)
    assert ticked.as_of_s == pytest.approx({"gpu": 0.11}), "half-way between the two looks"
    again = board.after(0.05, MJ + 9_000)
    assert (again.joules, again.as_of_s) == (ticked.joules, ticked.as_of_s)
    assert again.at_s == pytest.approx(0.17)
    rarely = board.after(3.0, MJ + 999_000)
    assert rarely.as_of_s == pytest.approx({"gpu": 3.12}), "at most a period ago"


def test_the_sum_of_boards_moves_when_all_of_them_have() -> None:
    clock, driver = Clock(), Driver(energy_mj=[1000, 2000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    clock.now_s, driver.energy_mj = 0.1, [11_000, 2000]
    assert meter.read().total_j == 0
    clock.now_s, driver.energy_mj = 0.16, [11_000, 22_000]
    reading = meter.read()
    assert reading.total_j == pytest.approx(30.0)
    assert reading.as_of_s == pytest.approx({"gpu": (0.05 + 0.13) / 2})


def test_a_counter_that_stands_still_is_told() -> None:
    board = Board(MJ)
    with pytest.raises(StillError, match="GPU 0 stands still"):
        board.after(11.0, MJ)


@pytest.mark.parametrize("missing", [None, 0])
def test_without_a_counter_power_is_integrated(clock: Clock, missing: int | None) -> None:
    """One device without (or with a dead) counter makes all be polled."""
    driver = Driver(energy_mj=[9000, missing], power_mw=[100_000, 50_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    assert meter.method == "measured:nvml-power"
    clock.now_s = 1.0
    assert meter.read().total_j == pytest.approx(150.0)
    driver.power_mw = [300_000, 50_000]
    clock.now_s = 2.0
    reading = meter.read()
    assert reading.total_j == pytest.approx(150.0 + 200.0 + 50.0)
    assert (reading.gaps, reading.as_of_s) == (frozenset(), {"gpu": 2.0})


def test_power_is_taken_as_it_is_now_where_the_driver_has_it(clock: Clock) -> None:
    """The average says 70 W for most of a second after the load has begun."""
    driver = Driver(power_mw=[70_000], instant_mw=[300_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    clock.now_s = 1.0
    assert meter.read().total_j == pytest.approx(300.0)
    assert meter.lag_s == 0.0
    assert NvmlMeter(Driver(power_mw=[70_000]), clock=clock, poll_s=None).lag_s == 1.0


def test_a_hole_between_two_samples_is_a_gap_and_not_made_up(clock: Clock) -> None:
    """Half a minute at 70 W between two samples of 300 W: 2,100 J, of which nobody knows."""
    driver = Driver(power_mw=[300_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    clock.now_s = 30.0
    reading = meter.read()
    assert reading.total_j == pytest.approx(300.0), "half a second around each sample"
    assert reading.gaps == {"gpu"}
    clock.now_s = 30.5
    assert meter.read().gaps == frozenset()


def test_power_that_cannot_be_read_for_long_is_a_gap(clock: Clock) -> None:
    driver = Driver(power_mw=[100_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.power_mw, clock.now_s = [None], 0.5
    with pytest.raises(SensorError, match="nvml power of GPU 0: not supported"):
        meter.read()
    driver.power_mw, clock.now_s = [200_000], 2.0
    reading = meter.read()
    assert reading.total_j == pytest.approx(150.0)
    assert reading.gaps == {"gpu"}


def test_power_that_no_board_draws_is_not_integrated(clock: Clock) -> None:
    driver = Driver(power_mw=[100_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.power_mw, clock.now_s = [2**32 - 1], 0.1
    with pytest.raises(SensorError, match="is not possible"):
        meter.read()
    driver.power_mw, clock.now_s = [100_000], 0.2
    assert meter.read().total_j == pytest.approx(20.0)


def test_no_power_at_all_stands_still(clock: Clock) -> None:
    meter = NvmlMeter(Driver(power_mw=[0]), clock=clock, poll_s=None)
    clock.now_s = 11.0
    with pytest.raises(StillError, match="GPU 0 stands still"):
        meter.read()


def test_integrated_power_is_less_certain_than_a_counter(clock: Clock) -> None:
    polled = NvmlMeter(Driver(power_mw=[1000]), clock=clock, poll_s=None)
    counted = NvmlMeter(Driver(energy_mj=[1000]), clock=clock, poll_s=None)
    assert polled.uncertainty > counted.uncertainty


def test_a_device_that_fails_leaves_the_sum_and_is_made_up_for_later(clock: Clock) -> None:
    driver = Driver(energy_mj=[1000, 1000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.energy_mj = [2000, None]
    with pytest.raises(SensorError, match="nvml energy counter of GPU 1: not supported"):
        meter.read()
    driver.energy_mj = [3000, 1500]
    assert meter.read().total_j == pytest.approx(2.5)


def test_a_counter_may_be_left_alone(clock: Clock) -> None:
    driver = Driver(energy_mj=[1000], power_mw=[1000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None, power_only=True)
    assert meter.method == "measured:nvml-power"


def test_a_machine_without_devices_has_no_meter(clock: Clock) -> None:
    with pytest.raises(SensorError, match="nvml: no device"):
        NvmlMeter(Driver(), clock=clock, poll_s=None)


def test_a_device_that_reports_nothing_has_no_meter(clock: Clock) -> None:
    with pytest.raises(SensorError, match="nvml power"):
        NvmlMeter(Driver(energy_mj=[None], power_mw=[None]), clock=clock, poll_s=None)


def test_an_instance_is_metered_by_its_own_counter(clock: Clock) -> None:
    driver = Driver(energy_mj=[MJ], instances={"MIG-a": 5_000_000})
    found = Found((Device("MIG-a", "MIG-a"),))
    meter = NvmlMeter(driver, found, clock=clock, poll_s=None)
    clock.now_s = 1.0
    driver.energy_mj, driver.instances["MIG-a"] = [MJ + 500_000], 5_040_000
    assert meter.read().total_j == pytest.approx(40.0)


@pytest.mark.parametrize("own_mj", [None, MJ])
def test_an_instance_is_never_metered_as_its_whole_board(clock: Clock, own_mj: int | None) -> None:
    driver = Driver(energy_mj=[MJ], power_mw=[300_000], instances={"MIG-a": own_mj})
    found = Found((Device("MIG-a", "MIG-a"),))
    with pytest.raises(SensorError, match="nvml power of MIG-a: not supported"):
        NvmlMeter(driver, found, clock=clock, poll_s=None)


def test_the_library_is_loaded_and_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(energy_mj=[1])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert load_nvml() is driver


def test_a_driver_that_is_not_loaded_is_a_sensor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(init_error="driver not loaded"))
    with pytest.raises(SensorError, match="nvml: driver not loaded"):
        load_nvml()


def test_a_missing_library_is_a_sensor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SensorError, match=r"nvml: .*pynvml"):
        load_nvml()


def test_of_eight_boards_the_one_that_computes_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's second device is NVML's sixth."""
    driver = Driver(energy_mj=[1000] * 8)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    order = tuple(f"{i}-board" for i in (0, 5, 1, 2, 3, 4, 6, 7))
    meter = nvml_meter(Scope(devices=("cuda:1",), cuda=lambda: order))
    driver.energy_mj = [3000 if i == 5 else 9_000 for i in range(8)]
    assert meter.read().joules == pytest.approx({"gpu": 2.0})


@pytest.mark.parametrize("figures", [{"power_mw": [50_000]}, {"energy_mj": [50_000]}])
def test_devices_are_polled_between_readings(figures: dict[str, Any]) -> None:
    polled = threading.Event()

    class Watched(Driver):
        def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
            return self._watched(super().nvmlDeviceGetPowerUsage(handle))

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
            return self._watched(super().nvmlDeviceGetTotalEnergyConsumption(handle))

        def _watched(self, value: int) -> int:
            if threading.current_thread() is not threading.main_thread():
                polled.set()
            return value

    meter = NvmlMeter(Watched(**figures), poll_s=0.001)
    assert meter.measured
    assert polled.wait(PATIENCE_S), "nobody looked between two readings"
