"""Joules of NVIDIA GPUs through NVML; the only module that imports pynvml.

Two methods: the energy counter (Volta and later: millijoules, updated about every 100 ms) and,
where it is missing, the integral of power, polled ten times a second by a thread of its own.

Contract: joules since the meter was made, monotone, summed over the devices in `visible` (the value
of CUDA_VISIBLE_DEVICES; None is all). A counter that falls back is taken as reset; one that only
slips back a little adds nothing. Not covered: single MIG partitions (NVML meters whole boards, so a
machine that shares a board over-counts), other processes on the same boards, NVLink switches.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from greenllm.energy.meters.protocol import Reading, SensorError
from greenllm.energy.meters.scope import Scope

_J_PER_MJ = 1e-3
_W_PER_MW = 1e-3
_POLL_S = 0.1


class Nvml(Protocol):
    """The part of the pynvml module that is used."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None:  # noqa: N802  (pynvml's names)
        """Load the driver library."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Number of devices."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """Handle of one device."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        """Handle of one device by its UUID."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        """Millijoules since the driver was loaded."""

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        """Milliwatts now, averaged over up to a second on Ampere and later."""


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


def visible_handles(nvml: Nvml, visible: str | None) -> list[Any]:
    """Handles of the devices that CUDA programs see; names other than numbers are UUIDs.

    Raises:
        SensorError: there is none, or one of them is not known.
    """
    try:
        if visible is None:
            names = [str(i) for i in range(nvml.nvmlDeviceGetCount())]
        else:
            names = [name.strip() for name in visible.split(",") if name.strip()]
        handles = [_handle(nvml, name) for name in names]
    except nvml.NVMLError as error:
        raise SensorError(f"nvml: {error}") from error
    if not handles:
        raise SensorError("nvml: no device")
    return handles


def _handle(nvml: Nvml, name: str) -> Any:
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


class NvmlMeter:
    """The visible GPUs as the domain `gpu`."""

    measured = True
    idle_w: Mapping[str, float] | None = None

    def __init__(
        self,
        nvml: Nvml,
        *,
        visible: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        poll_s: float | None = _POLL_S,
    ) -> None:
        """Open the devices; `poll_s` None leaves polling power to the calls of `read`."""
        self._nvml = nvml
        self._clock = clock
        self._handles = visible_handles(nvml, visible)
        self._has_counter = self._probe_counter()
        self.method = "measured:nvml-energy" if self._has_counter else "measured:nvml-power"
        self.period_s = 0.1
        self.lag_s = 0.0 if self._has_counter else 1.0
        self.uncertainty = 0.05 if self._has_counter else 0.15
        self._sum_j = 0.0
        self._last_s = clock()
        self._last = self._raw()
        self._reading = threading.Lock()
        if poll_s is not None and not self._has_counter:
            threading.Thread(target=self._poll, args=(poll_s,), name="nvml", daemon=True).start()

    def _poll(self, period_s: float) -> None:
        """Follow the power between readings; what fails here fails in `read` too, and is told."""
        while True:
            time.sleep(period_s)
            with contextlib.suppress(SensorError):
                self.read()

    def _probe_counter(self) -> bool:
        try:
            return all(self._energy_j(handle) > 0 for handle in self._handles)
        except SensorError:
            return False

    def _energy_j(self, handle: object) -> float:
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * _J_PER_MJ
        except self._nvml.NVMLError as error:
            raise SensorError(f"nvml energy counter: {error}") from error

    def _power_w(self, handle: object) -> float:
        try:
            return self._nvml.nvmlDeviceGetPowerUsage(handle) * _W_PER_MW
        except self._nvml.NVMLError as error:
            raise SensorError(f"nvml power: {error}") from error

    def _raw(self) -> list[float]:
        read = self._energy_j if self._has_counter else self._power_w
        return [read(handle) for handle in self._handles]

    def read(self) -> Reading:
        """Read all devices, then add: a failing device leaves the sum as it was."""
        with self._reading:
            return self._read()

    def _read(self) -> Reading:
        raw = self._raw()
        now_s = self._clock()
        pairs = zip(self._last, raw, strict=True)
        if self._has_counter:
            self._sum_j += sum(self._counter_delta_j(before, now) for before, now in pairs)
        else:
            elapsed_s = now_s - self._last_s
            self._sum_j += sum((before + now) / 2 * elapsed_s for before, now in pairs)
        self._last, self._last_s = raw, now_s
        return Reading(now_s, {"gpu": self._sum_j})

    def _counter_delta_j(self, before_j: float, now_j: float) -> float:
        if now_j >= before_j:
            return now_j - before_j
        return now_j if now_j <= before_j / 2 else 0.0


def nvml_meter(_: Scope) -> NvmlMeter:
    """The GPUs that CUDA programs see.

    Raises:
        SensorError: there is no driver, or no such device.
    """
    return NvmlMeter(load_nvml(), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
