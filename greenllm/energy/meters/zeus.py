"""Joules of AMD GPUs, NVIDIA Jetson and Apple silicon through Zeus' device layer (extra `zeus`).

Contract: two meters, each only by its name. `zeus-gpu` has the AMD GPUs that compute, numbered as
HIP and torch number them. `zeus-soc` has a chip's rails: processors, memory where it is told, and
on Jetson the GPU. Zeus is imported when one of them is made. Whatever it raises is a `SensorError`.

It was never run on such hardware: tests use objects with the shape of Zeus 0.16. The interval of
15 % is a guess until somebody compares it with a wall meter.

Not covered: NVIDIA's boards (see `nvml`); AMD GPUs whose counter Zeus does not trust, and single
dies of an MI250, which has one counter for two; Apple's GPU, on which nothing here computes; rails
that a Jetson board does not tell apart (some have one for CPU and GPU, which counts as CPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from greenllm.energy.meters.combined import CombinedMeter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import SensorError
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.track import Tracks
from greenllm.energy.meters.tracked import TrackedMeter

_J_PER_MJ = 1e-3
_W_PER_MW = 1e-3
_PERIOD_S = 0.1
_LOOK_EVERY_S = 1.0
_LARGEST_GPU_W = 1500.0
_LARGEST_RAIL_W = 500.0
_CUDA = "cuda:"
# Names of Apple's and of Jetson's figures, by domain.
_RAILS = {
    "cpu": ("cpu_total_mj", "cpu_energy_mj"),
    "gpu": ("gpu_energy_mj",),
    "dram": ("dram_mj",),
}


@dataclass(frozen=True, slots=True)
class _Counter:
    """One figure in millijoules that Zeus tells."""

    name: str
    largest_w: float
    read_mj: Callable[[], float | None]
    wraps_at_j: float | None = None

    def read_j(self) -> float:
        """Ask for it.

        Raises:
            SensorError: it is not told.
        """
        value: float | None = _ask(self.name, self.read_mj)
        if value is None:
            raise SensorError(f"zeus: {self.name} has no figure any more")
        return value * _J_PER_MJ


class ZeusMeter(TrackedMeter):
    """Counters of one domain that Zeus tells."""

    period_s = _PERIOD_S
    uncertainty = 0.15

    def __init__(
        self,
        domain: str,
        method: str,
        counters: Sequence[_Counter],
        *,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float | None = _LOOK_EVERY_S,
    ) -> None:
        """Begin to follow; with `look_every_s` a thread looks between readings."""
        self.method = method
        tracks = Tracks(counters, period_s=self.period_s, clock=clock)
        wait_s = None if look_every_s is None else lambda *_: look_every_s
        super().__init__(domain, tracks, cpu=cpu, clock=clock, wait_s=wait_s)


def zeus_gpu_meter(scope: Scope) -> ZeusMeter:
    """The AMD GPUs of a scope.

    Raises:
        SensorError: Zeus is not installed, finds none, or one has no counter.
    """
    gpus = _ask("GPUs", _devices().get_gpus)
    if type(gpus).__name__.startswith("NVIDIA"):
        raise SensorError("zeus: NVIDIA's GPUs are metered by nvml")
    counters = [_gpu(gpus, index) for index in _indices(scope.devices, len(gpus))]
    if not counters:
        raise SensorError("zeus: no GPU")
    return ZeusMeter("gpu", "measured:zeus-gpu", counters)


def _indices(devices: tuple[str, ...] | None, num_gpus: int) -> list[int]:
    if devices is None:
        return list(range(num_gpus))
    found = []
    for device in devices:
        number = device.removeprefix(_CUDA)
        if not (device.startswith(_CUDA) and number.isdecimal() and int(number) < num_gpus):
            raise SensorError(f"zeus: {device} is not among the {num_gpus} GPUs that it sees")
        found.append(int(number))
    return found


def _gpu(gpus: Any, index: int) -> _Counter:
    name = f"GPU {index}"
    if not _ask(name, lambda: gpus.supports_get_total_energy_consumption(index)):
        raise SensorError(f"zeus: {name} has no energy counter that Zeus trusts")
    try:
        limit_w = _ask(name, lambda: gpus.get_power_management_limit(index)) * _W_PER_MW
    except SensorError:
        limit_w = _LARGEST_GPU_W
    largest_w = limit_w if 0 < limit_w < _LARGEST_GPU_W else _LARGEST_GPU_W
    return _Counter(name, largest_w, lambda: gpus.get_total_energy_consumption(index))


def zeus_soc_meter(scope: Scope) -> CombinedMeter:
    """The rails of this machine's chip, each domain by itself.

    Raises:
        SensorError: Zeus is not installed, or there is no such chip.
    """
    soc = _ask("chip", _devices().get_soc)
    seen = _ask("chip", soc.get_total_energy_consumption)
    found = {
        domain: name
        for domain, names in _RAILS.items()
        for name in names
        if getattr(seen, name, None) is not None and (domain != "gpu" or scope.devices != ())
    }
    if "cpu" not in found:
        raise SensorError("zeus: this chip does not tell the joules of its processors")
    return CombinedMeter(_rail(soc, domain, name, scope) for domain, name in found.items())


def _rail(soc: Any, domain: str, name: str, scope: Scope) -> ZeusMeter:
    """One domain; the first has the CPU times, and where the machine is shared, each."""

    def read_mj() -> float | None:
        value: float | None = getattr(soc.get_total_energy_consumption(), name)
        return value

    counter = _Counter(name.removesuffix("_mj"), _LARGEST_RAIL_W, read_mj)
    cpu = scope.clock if domain == "cpu" or scope.roster is not None else None
    return ZeusMeter(domain, "measured:zeus-soc", [counter], cpu=cpu)


def _devices() -> Any:
    try:
        return import_module("zeus.device")
    except ImportError as error:
        raise SensorError(f"zeus: {error}: pip install 'greenllm[zeus]'") from error


def _ask(name: str, call: Callable[[], Any]) -> Any:
    """Call Zeus, whose errors, and those of the libraries below it, have no common class."""
    try:
        return call()
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SensorError(f"zeus: {name}: {said}") from error
