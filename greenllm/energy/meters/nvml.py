"""Joules of NVIDIA GPUs through NVML; the only module that imports pynvml.

Two methods: the energy counter (Volta and later: millijoules, updated about every 100 ms) and,
where it is missing or stands still, the integral of power, polled ten times a second by a thread of
its own: of the instant power where the driver has it, else of an average over up to a second.

Contract: joules of some devices since the meter was made, followed as `track` says. A sample of
power counts for half a second before and after it: a longer hole is a gap, and what was used in it
is not known. A MIG instance has a meter only where NVML has figures of its own for it.

Not covered: other processes on the same devices, NVLink switches.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

from greenllm.energy.meters.nvml_devices import Device, Found, NvmlDevices, find_devices
from greenllm.energy.meters.protocol import SensorError
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.track import Counter, Tracks
from greenllm.energy.meters.tracked import TrackedMeter

_J_PER_MJ = 1e-3
_W_PER_MW = 1e-3
_PERIOD_S = 0.1
_POLL_S = 0.005
_POLLS_OF_POWER = 20
# A server without requests reads twice a minute, and the next request wants to know the last tick.
_UNREAD_S, _DOZE_S = 60.0, 0.5
# After a tick of the counter the next one is not looked for during most of the period.
_QUIET = 0.8
_AVERAGE_LAG_S = 1.0
_HOLE_S = 1.0
_LARGEST_W = 1500.0
_NONSENSE = 2.0
_POWER_INSTANT = 186
_SAME_AS_BOARD = 0.99


class Nvml(NvmlDevices, Protocol):
    """The part of the pynvml module that is used."""

    def nvmlInit(self) -> None:  # noqa: N802  (pynvml's names)
        """Load the driver library."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        """Millijoules since the driver was loaded."""

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        """Milliwatts now, averaged over up to a second on Ampere and later."""

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> Any:  # noqa: N802
        """Values by number, each with a return code of its own."""

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:  # noqa: N802
        """Milliwatts that the device is held to."""

    def nvmlDeviceIsMigDeviceHandle(self, handle: Any) -> int:  # noqa: N802
        """Whether a handle is that of an instance of a board."""

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Any) -> Any:  # noqa: N802
        """The board of an instance."""


Figure = Callable[[Nvml, Any], float]


def load_nvml() -> Nvml:
    """Import and initialise pynvml.

    Raises:
        SensorError: no library or no driver.
    """
    try:
        nvml = cast(Nvml, importlib.import_module("pynvml"))
    except ImportError as error:
        raise SensorError(f"nvml: {error}") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise SensorError(f"nvml: {error}") from error
    return nvml


def _energy_j(nvml: Nvml, handle: Any) -> float:
    return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * _J_PER_MJ


def _average_w(nvml: Nvml, handle: Any) -> float:
    return nvml.nvmlDeviceGetPowerUsage(handle) * _W_PER_MW


def _instant_w(nvml: Nvml, handle: Any) -> float:
    (field,) = nvml.nvmlDeviceGetFieldValues(handle, [_POWER_INSTANT])
    if field.nvmlReturn:
        raise SensorError(f"nvml: no instant power, return code {field.nvmlReturn}")
    return float(field.value.uiVal) * _W_PER_MW


@dataclass(frozen=True, slots=True)
class _Gauge:
    """One figure of one device: joules, or watts."""

    nvml: Nvml
    device: Device
    what: str
    figure: Figure

    @property
    def largest_w(self) -> float:
        try:
            limit_w = self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.device.handle) * _W_PER_MW
        except self.nvml.NVMLError:
            return _LARGEST_W
        return limit_w if 0 < limit_w < _LARGEST_W else _LARGEST_W

    def read(self) -> float:
        return self._read(self.device.handle)

    def require_own(self) -> None:
        """Refuse what is said of an instance and meant of its board.

        Raises:
            SensorError: it is the board's, or not there at all.
        """
        value, handle = self.read(), self.device.handle
        try:
            if not self.nvml.nvmlDeviceIsMigDeviceHandle(handle):
                return
            board = self.nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        except self.nvml.NVMLError:
            return  # no board of this driver can be split
        if value >= _SAME_AS_BOARD * self._read(board):
            raise SensorError(f"nvml {self.what}: that of {self.device.name} is its whole board's")

    def _read(self, handle: Any) -> float:
        try:
            return self.figure(self.nvml, handle)
        except self.nvml.NVMLError as error:
            raise SensorError(f"nvml {self.what} of {self.device.name}: {error}") from error


class _EnergyCounter:
    """The energy counter of one device."""

    wraps_at_j: float | None = None

    def __init__(self, gauge: _Gauge) -> None:
        self.name = gauge.device.name
        self.largest_w = gauge.largest_w
        self.read_j = gauge.read


class _PowerIntegral:
    """A counter made of the power of one device."""

    wraps_at_j: float | None = None

    def __init__(self, gauge: _Gauge, clock: Callable[[], float]) -> None:
        self.name = gauge.device.name
        self.largest_w = gauge.largest_w
        self._gauge = gauge
        self._clock = clock
        self._sum_j = 0.0
        self._last_w: float | None = None
        self._last_s = 0.0

    def read_j(self) -> float:
        """Integrate up to now.

        Raises:
            SensorError: there is no power, or more than the device can draw.
        """
        now_w, now_s = self._gauge.read(), self._clock()
        if now_w > _NONSENSE * self.largest_w:
            raise SensorError(f"nvml power of {self.name}: {now_w:g} W is not possible")
        if self._last_w is not None:
            known_s = min(now_s - self._last_s, _HOLE_S)
            self._sum_j += (self._last_w + now_w) / 2 * known_s
        self._last_w, self._last_s = now_w, now_s
        return self._sum_j


class NvmlMeter(TrackedMeter):
    """Some GPUs as the domain `gpu`."""

    period_s = _PERIOD_S

    def __init__(
        self,
        nvml: Nvml,
        found: Found | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        poll_s: float | None = _POLL_S,
        power_only: bool = False,
    ) -> None:
        """Follow the devices that were found, or every board.

        Args:
            nvml: The library.
            found: The devices, and what had to be assumed.
            clock: Tells the moments of readings.
            poll_s: The shortest time between two looks; None leaves looking to `read`.
            power_only: Whether to leave the energy counter alone.

        Raises:
            SensorError: one of the devices has neither an energy counter nor power.
        """
        found = found or find_devices(nvml, environment={}, cuda=lambda: None)
        self.assumption = found.assumption
        gauges = [] if power_only else _gauges(nvml, found.devices, "energy counter", _energy_j)
        counters: Sequence[Counter]
        wait_s: Callable[[float, float], float]
        if gauges and all(gauge.read() > 0 for gauge in gauges):
            self.method, self.uncertainty, self.lag_s = "measured:nvml-energy", 0.05, 0.0
            counters = [_EnergyCounter(gauge) for gauge in gauges]
            tracks = Tracks(counters, period_s=self.period_s, clock=clock)
            wait_s = partial(_until_tick_s, poll_s or 0.0)
        else:
            self.method, self.uncertainty = "measured:nvml-power", 0.15
            gauges = _gauges(nvml, found.devices, "instant power", _instant_w)
            self.lag_s = 0.0 if gauges else _AVERAGE_LAG_S
            gauges = gauges or _gauges(nvml, found.devices, "power", _average_w, is_last=True)
            counters = [_PowerIntegral(gauge, clock) for gauge in gauges]
            tracks = Tracks(counters, period_s=0.0, clock=clock, hole_s=_HOLE_S)
            wait_s = partial(_until_sample_s, poll_s or 0.0)
        super().__init__("gpu", tracks, clock=clock, wait_s=None if poll_s is None else wait_s)


def _gauges(
    nvml: Nvml, devices: Sequence[Device], what: str, figure: Figure, *, is_last: bool = False
) -> list[_Gauge]:
    """One figure of all devices; none of any where one of them has not got it.

    Raises:
        SensorError: there is nothing else to try, and one of them has not got it.
    """
    gauges = [_Gauge(nvml, device, what, figure) for device in devices]
    try:
        for gauge in gauges:
            gauge.require_own()
    except SensorError:
        if is_last:
            raise
        return []
    return gauges


def _until_tick_s(poll_s: float, unread_s: float, unmoved_s: float) -> float:
    """How long to leave the counter alone: nobody reads it, or it has just ticked."""
    if unread_s > _UNREAD_S:
        return _DOZE_S
    return max(poll_s, _QUIET * _PERIOD_S - unmoved_s)


def _until_sample_s(poll_s: float, unread_s: float, unmoved_s: float) -> float:
    """Power is sampled evenly, whoever reads."""
    return _POLLS_OF_POWER * poll_s


def nvml_meter(scope: Scope, *, power_only: bool = False) -> NvmlMeter:
    """The GPUs of a scope.

    Raises:
        SensorError: there is no driver, or no such device.
    """
    nvml = load_nvml()
    found = find_devices(nvml, scope.devices, environment=os.environ, cuda=scope.cuda)
    return NvmlMeter(nvml, found, power_only=power_only)


def nvml_power_meter(scope: Scope) -> NvmlMeter:
    """The same by their power, for counters that stand still.

    Raises:
        SensorError: there is no driver, or no such device.
    """
    return nvml_meter(scope, power_only=True)
