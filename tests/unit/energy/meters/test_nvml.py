"""NVML through a fake driver: counters, integrated power, and what fails."""

import sys
import threading
from typing import Any

import pytest

from greenllm.energy.meters.nvml import NvmlMeter, load_nvml
from greenllm.energy.meters.protocol import SensorError
from tests.waiting import PATIENCE_S


class NVMLError(Exception):
    """The driver says no."""


class Driver:
    """As many devices as there are powers; None stands for a call that fails."""

    NVMLError: type[Exception] = NVMLError

    def __init__(
        self,
        *,
        energy_mj: list[int | None] | None = None,
        power_mw: list[int | None] | None = None,
        init_fails: bool = False,
        count_fails: bool = False,
    ) -> None:
        self.energy_mj = energy_mj or []
        self.power_mw = power_mw or []
        self._init_fails = init_fails
        self._count_fails = count_fails

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init_fails:
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self._count_fails:
            raise NVMLError("uninitialised")
        return max(len(self.energy_mj), len(self.power_mw))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        if not uuid.startswith("GPU-"):
            raise NVMLError("not found")
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        return _known(self.energy_mj, handle)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        return _known(self.power_mw, handle)


def _known(values: list[int | None], index: int) -> int:
    value = values[index] if index < len(values) else None
    if value is None:
        raise NVMLError("not supported")
    return value


class Clock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_energy_counter_is_taken_from_the_start_of_the_meter(clock: Clock) -> None:
    driver = Driver(energy_mj=[5_000_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    assert meter.method == "measured:nvml-energy"
    assert meter.read().joules == {"gpu": 0}
    driver.energy_mj = [5_002_500]
    clock.now_s = 3.0
    reading = meter.read()
    assert reading.at_s == 3.0
    assert reading.joules == pytest.approx({"gpu": 2.5})
    assert (meter.measured, meter.idle_w, reading.own_cpu_s) == (True, None, None)


def test_several_devices_add_up(clock: Clock) -> None:
    driver = Driver(energy_mj=[1000, 2000, 3000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.energy_mj = [2000, 4000, 6000]
    assert meter.read().total_j == pytest.approx(6.0)


@pytest.mark.parametrize("missing", [None, 0])
def test_without_a_counter_power_is_integrated(clock: Clock, missing: int | None) -> None:
    """One device without (or with a dead) counter makes all be polled."""
    driver = Driver(energy_mj=[9000, missing], power_mw=[100_000, 50_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    assert meter.method == "measured:nvml-power"
    clock.now_s = 2.0
    assert meter.read().total_j == pytest.approx(300.0)
    driver.power_mw = [300_000, 50_000]
    clock.now_s = 3.0
    assert meter.read().total_j == pytest.approx(300.0 + 200.0 + 50.0)


def test_integrated_power_is_less_certain_than_a_counter(clock: Clock) -> None:
    polled = NvmlMeter(Driver(power_mw=[1000]), clock=clock, poll_s=None)
    counted = NvmlMeter(Driver(energy_mj=[1000]), clock=clock, poll_s=None)
    assert polled.uncertainty > counted.uncertainty


def test_a_device_that_fails_leaves_the_sum_and_is_made_up_for_later(clock: Clock) -> None:
    driver = Driver(energy_mj=[1000, 1000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.energy_mj = [2000, None]
    with pytest.raises(SensorError, match="nvml energy counter: not supported"):
        meter.read()
    driver.energy_mj = [3000, 1500]
    assert meter.read().total_j == pytest.approx(2.5)


def test_failing_power_is_bridged_by_the_next_reading(clock: Clock) -> None:
    driver = Driver(power_mw=[100_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.power_mw, clock.now_s = [None], 1.0
    with pytest.raises(SensorError, match="nvml power: not supported"):
        meter.read()
    driver.power_mw, clock.now_s = [200_000], 2.0
    assert meter.read().total_j == pytest.approx(300.0)


def test_a_reset_counter_continues_from_zero(clock: Clock) -> None:
    driver = Driver(energy_mj=[8000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.energy_mj = [9000]
    assert meter.read().total_j == pytest.approx(1.0)
    driver.energy_mj = [500]
    assert meter.read().total_j == pytest.approx(1.5)


def test_a_counter_that_slips_back_does_not_add_its_whole_past(clock: Clock) -> None:
    driver = Driver(energy_mj=[1_000_000_000])
    meter = NvmlMeter(driver, clock=clock, poll_s=None)
    driver.energy_mj = [999_999_999]
    assert meter.read().total_j == 0


def test_a_machine_without_devices_has_no_meter(clock: Clock) -> None:
    with pytest.raises(SensorError, match="nvml: no device"):
        NvmlMeter(Driver(), clock=clock, poll_s=None)


def test_a_driver_that_cannot_count_has_no_meter(clock: Clock) -> None:
    with pytest.raises(SensorError, match="nvml: uninitialised"):
        NvmlMeter(Driver(count_fails=True), clock=clock, poll_s=None)


def test_a_device_that_reports_nothing_has_no_meter(clock: Clock) -> None:
    with pytest.raises(SensorError, match="nvml power"):
        NvmlMeter(Driver(energy_mj=[None], power_mw=[None]), clock=clock, poll_s=None)


def test_the_library_is_loaded_and_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(energy_mj=[1])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert load_nvml() is driver


def test_a_driver_that_is_not_loaded_is_a_sensor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(init_fails=True))
    with pytest.raises(SensorError, match="nvml: driver not loaded"):
        load_nvml()


def test_a_missing_library_is_a_sensor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SensorError, match=r"nvml: .*pynvml"):
        load_nvml()


@pytest.mark.parametrize(("visible", "joules"), [("1", 20.0), ("GPU-0, 1", 30.0), (None, 30.0)])
def test_only_visible_devices_are_metered(visible: str | None, joules: float) -> None:
    driver = Driver(energy_mj=[1000, 1000])
    meter = NvmlMeter(driver, visible=visible, clock=Clock(), poll_s=None)
    driver.energy_mj = [11_000, 21_000]
    assert meter.read().joules["gpu"] == pytest.approx(joules)


@pytest.mark.parametrize("visible", ["", "MIG-7"])
def test_no_visible_device_is_no_meter(visible: str) -> None:
    with pytest.raises(SensorError, match="nvml"):
        NvmlMeter(Driver(energy_mj=[1000]), visible=visible, poll_s=None)


def test_power_is_polled_between_readings() -> None:
    polled = threading.Event()

    class Watched(Driver):
        def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
            if threading.current_thread().name == "nvml":
                polled.set()
            return super().nvmlDeviceGetPowerUsage(handle)

    meter = NvmlMeter(Watched(power_mw=[50_000]), poll_s=0.001)
    assert meter.method == "measured:nvml-power"
    assert polled.wait(PATIENCE_S), "nobody looked at the power between two readings"
