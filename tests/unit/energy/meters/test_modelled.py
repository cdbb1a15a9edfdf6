"""The modelled meter: watts between idle and full, times CPU time."""

from pathlib import Path

import pytest

from greenllm.energy.hardware import VcpuPower
from greenllm.energy.meters.cputime import CpuClock, CpuTimes
from greenllm.energy.meters.modelled import ModelledMeter


class Cpu(CpuClock):
    """CPU times set by hand."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), own_s=lambda: 0.0, clock=lambda: 0.0)
        self.times = CpuTimes(0.0, 0.0)

    def read(self) -> CpuTimes:
        return self.times


def _power(*, is_generic: bool = False) -> VcpuPower:
    return VcpuPower("a family", 0.5, 2.0, 0.3, "a source", is_generic)


def test_joules_are_idle_power_over_time_and_dynamic_power_over_cpu_time() -> None:
    cpu, now = Cpu(), [100.0]
    meter = ModelledMeter(_power(), 4, cpu=cpu, clock=lambda: now[0])
    assert meter.read().joules == {"cpu": 0.0}
    now[0], cpu.times = 110.0, CpuTimes(3.0, 5.0)
    reading = meter.read()
    assert reading.joules["cpu"] == pytest.approx(4 * 0.5 * 10 + 1.5 * 5)
    assert (reading.at_s, reading.own_cpu_s, reading.machine_cpu_s) == (110.0, 3.0, 5.0)


def test_full_load_draws_the_maximum() -> None:
    cpu, now = Cpu(), [0.0]
    meter = ModelledMeter(_power(), 2, cpu=cpu, clock=lambda: now[0])
    now[0], cpu.times = 10.0, CpuTimes(20.0, 20.0)
    assert meter.read().total_j == pytest.approx(2 * 2.0 * 10)


def test_it_says_that_it_is_a_model_and_how_wide() -> None:
    meter = ModelledMeter(_power(), 4, cpu=Cpu())
    assert not meter.measured
    assert (meter.method, meter.uncertainty) == ("modelled:vcpu-specpower", 0.3)
    assert meter.idle_w == {"cpu": 2.0}
    assert ModelledMeter(_power(is_generic=True), 1).method == "modelled:vcpu-constant"
