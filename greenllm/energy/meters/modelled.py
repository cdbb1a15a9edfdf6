"""Joules of a machine without sensors: watts per vCPU between idle and full, times CPU time.

E(t) = n * min_w * t + (max_w - min_w) * busy_cpu_s(t), with min and max from SPECpower results per
processor family (see `hardware`). This is the method of Cloud Carbon Footprint, applied to the CPU
time of the whole machine instead of a billing estimate.

SPECpower measures whole servers, so memory, fans and power supply are inside the figure, at a Java
load. Not covered: AVX peaks, frequency changes, what the host does for its other guests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from greenllm.energy.hardware import VcpuPower, read_cpu_info, vcpu_power
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Reading
from greenllm.energy.meters.scope import Scope


class ModelledMeter:
    """A meter made of two clocks and two coefficients."""

    measured = False
    period_s = 0.002
    lag_s = 0.0

    def __init__(
        self,
        power: VcpuPower,
        num_vcpus: int,
        *,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.method = "modelled:vcpu-constant" if power.is_generic else "modelled:vcpu-specpower"
        self.uncertainty = power.relative_uncertainty
        self._power = power
        self._idle_w = power.min_w * num_vcpus
        self._cpu = cpu or CpuClock()
        self._clock = clock
        self._started_s = clock()

    @property
    def idle_w(self) -> Mapping[str, float]:
        """Power of all vCPUs with nothing running."""
        return {"cpu": self._idle_w}

    def read(self) -> Reading:
        """Model the joules since the meter was made."""
        times = self._cpu.read()
        now_s = self._clock()
        dynamic_w = self._power.max_w - self._power.min_w
        joules = self._idle_w * (now_s - self._started_s) + dynamic_w * times.machine_s
        return Reading(now_s, {"cpu": joules}, times.own_s, times.machine_s, times.train_s)


def modelled_meter(scope: Scope | None = None) -> ModelledMeter:
    """The processors of this machine, by their family's watts per vCPU."""
    cpu = read_cpu_info()
    return ModelledMeter(vcpu_power(cpu), cpu.num_vcpus, cpu=scope.clock if scope else None)
