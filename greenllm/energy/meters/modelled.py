"""Joules of a machine without sensors: watts per vCPU between idle and full, times CPU time.

E(t) = n * min_w * t + (max_w - min_w) * busy_cpu_s(t), with min and max from SPECpower results per
processor family (see `hardware`). This is the method of Cloud Carbon Footprint, applied to the CPU
time of the whole machine instead of a billing estimate. A process that may use only a part of the
machine (see `limits`) has the floor of that part, n hardware threads, and the CPU time used in it.

A machine that was calibrated has the watts and the interval of that fit instead (see `calibrated`);
a calibration that cannot be used here is left out with a warning.

SPECpower measures whole servers, so memory, fans and power supply are inside the figure, at a Java
load; a wall meter has all of that in it, too. Not covered: AVX peaks, frequency changes, what the
host does for its other guests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from greenllm.energy.hardware import CpuInfo, VcpuPower, read_cpu_info, vcpu_power
from greenllm.energy.meters.calibrated import METHOD, CalibrationError, read_calibration
from greenllm.energy.meters.cputime import CpuClock, CpuTimes
from greenllm.energy.meters.limits import CpuShare, cpu_share
from greenllm.energy.meters.protocol import Reading
from greenllm.energy.meters.scope import Scope

log = logging.getLogger(__name__)


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
        method: str | None = None,
        share: CpuShare | None = None,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        usual = "modelled:vcpu-constant" if power.is_generic else "modelled:vcpu-specpower"
        self.method = method or usual
        self.uncertainty = power.relative_uncertainty
        self._power = power
        self._idle_w = power.min_w * (num_vcpus if share is None else share.num_cpus)
        self._cpu = cpu or CpuClock()
        self._share = share
        self._share_from_s = None if share is None else share.busy_s()
        self._others_s = 0.0
        self._clock = clock
        self._started_s = clock()

    @property
    def idle_w(self) -> Mapping[str, float]:
        """Power with nothing running, of all vCPUs that this process may use."""
        return {"cpu": self._idle_w}

    def read(self) -> Reading:
        """Model the joules since the meter was made."""
        times = self._cpu.read()
        now_s = self._clock()
        busy_s = times.machine_s if self._share is None else self._busy_s(self._share, times)
        dynamic_w = self._power.max_w - self._power.min_w
        joules = self._idle_w * (now_s - self._started_s) + dynamic_w * busy_s
        return Reading(now_s, {"cpu": joules}, times.own_s, busy_s, times.train_s)

    def _busy_s(self, share: CpuShare, times: CpuTimes) -> float:
        """CPU seconds used in the share; where that is not told, nobody else used it."""
        used_s, known_s = share.busy_s(), times.own_s + times.train_s
        if used_s is not None and self._share_from_s is not None:
            self._others_s = max(self._others_s, used_s - self._share_from_s - known_s)
        return known_s + self._others_s


def modelled_meter(scope: Scope | None = None) -> ModelledMeter:
    """The processors of this machine, by its calibration, else by their family's watts per vCPU."""
    scope = scope or Scope()
    cpu = read_cpu_info(scope.proc / "cpuinfo")
    share = cpu_share(cpu.num_vcpus, scope.proc, scope.sys)
    power, method = _power(scope, cpu)
    return ModelledMeter(power, cpu.num_vcpus, method=method, share=share, cpu=scope.clock)


def _power(scope: Scope, cpu: CpuInfo) -> tuple[VcpuPower, str | None]:
    try:
        if found := read_calibration(scope.calibration, cpu):
            return found.power, METHOD
    except CalibrationError as error:
        log.warning("the calibration is not used: %s", error)
    return vcpu_power(cpu), None
