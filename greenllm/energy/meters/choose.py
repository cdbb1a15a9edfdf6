"""Chooses the best meter this machine offers, and can say why.

Per domain, best first: GPU: NVML energy counter, NVML power. CPU: RAPL, hwmon, the per-vCPU model.
A rung that fails leaves its reason behind; `greenllm doctor` prints them.

Not covered: host-shared readings inside virtual machines, Redfish, AMD and Intel GPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greenllm.energy.hardware import read_cpu_info, vcpu_power
from greenllm.energy.meters.counters import FileCounterMeter, find_hwmon, find_rapl
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.modelled import ModelledMeter
from greenllm.energy.meters.nvml import NvmlMeter, load_nvml
from greenllm.energy.meters.protocol import (
    CombinedMeter,
    Meter,
    NullMeter,
    SensorError,
    load_replay,
)


@dataclass(frozen=True, slots=True)
class Rung:
    """One method that was tried; `meter` is None where it failed, and `reason` says why."""

    name: str
    meter: Meter | None
    reason: str


def try_rung(name: str, make: Callable[[], Meter]) -> Rung:
    """Make a meter and read it once."""
    try:
        meter = make()
        meter.read()
    except SensorError as error:
        return Rung(name, None, str(error))
    return Rung(name, meter, "works")


def gpu_rungs() -> list[Rung]:
    """Try the GPU methods, on the devices that CUDA programs see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [try_rung("nvml", lambda: NvmlMeter(load_nvml(), visible=visible))]


def cpu_rungs(sys: Path = Path("/sys"), *, clock: CpuClock | None = None) -> list[Rung]:
    """Try the CPU methods, best first; `clock` tells whose CPU time is the own."""
    rapl, hwmon = "measured:rapl", "measured:hwmon"
    return [
        try_rung("rapl", lambda: FileCounterMeter(find_rapl(sys), method=rapl, cpu=clock)),
        try_rung("hwmon", lambda: FileCounterMeter(find_hwmon(sys), method=hwmon, cpu=clock)),
        try_rung("modelled", lambda: modelled_meter(clock)),
    ]


def modelled_meter(clock: CpuClock | None = None) -> ModelledMeter:
    """Model the CPU from its family's watts per vCPU."""
    cpu = read_cpu_info()
    return ModelledMeter(vcpu_power(cpu), cpu.num_vcpus, cpu=clock)


def choose_meter(
    name: str = "auto",
    *,
    gpu: Callable[[], list[Rung]] = gpu_rungs,
    cpu: Callable[[], list[Rung]] = cpu_rungs,
) -> Meter:
    """Build the meter called `name`: auto, nvml, rapl, hwmon, modelled or replay:FILE.

    Raises:
        SensorError: a method asked for by name does not work here.
    """
    if name.startswith("replay:"):
        return load_replay(Path(name.removeprefix("replay:")), clock=time.monotonic)
    if name == "auto":
        parts = [_best(gpu()), _best(cpu())]
        working = [meter for meter in parts if meter is not None]
        if not working:
            return NullMeter(time.monotonic)
        return working[0] if len(working) == 1 else CombinedMeter(working)
    for rung in [*gpu(), *cpu()]:
        if rung.name == name:
            if rung.meter is None:
                raise SensorError(f"meter {name} does not work here: {rung.reason}")
            return rung.meter
    choices = "auto, nvml, rapl, hwmon, modelled, replay:FILE"
    raise SensorError(f"no meter is called {name!r}: {choices}")


def _best(rungs: list[Rung]) -> Meter | None:
    return next((rung.meter for rung in rungs if rung.meter is not None), None)
