"""The modelled meter: watts between idle and full, times CPU time."""

from pathlib import Path

import pytest

from greenllm.energy.hardware import VcpuPower
from greenllm.energy.meters.calibrated import Calibration, write_calibration
from greenllm.energy.meters.cputime import CpuClock, CpuTimes
from greenllm.energy.meters.limits import CpuShare
from greenllm.energy.meters.modelled import ModelledMeter, modelled_meter
from greenllm.energy.meters.scope import Scope


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


def test_a_share_has_its_own_floor_and_the_time_that_was_used_in_it() -> None:
    """Two vCPUs of 256: their floor, and nothing of what strangers do outside."""
    cpu, now, used = Cpu(), [0.0], [50.0]
    share = CpuShare(2.0, "quota", lambda: used[0])
    meter = ModelledMeter(_power(), 256, share=share, cpu=cpu, clock=lambda: now[0])
    assert meter.idle_w == {"cpu": 2 * 0.5}
    now[0], cpu.times, used[0] = 10.0, CpuTimes(5.0, 2000.0, 2.0), 58.0
    reading = meter.read()
    assert reading.total_j == pytest.approx(2 * 0.5 * 10 + 1.5 * 8)
    assert (reading.own_cpu_s, reading.machine_cpu_s, reading.train_cpu_s) == (5.0, 8.0, 2.0)
    now[0], cpu.times, used[0] = 20.0, CpuTimes(6.0, 4000.0, 2.0), 58.5
    assert meter.read().machine_cpu_s == 9.0, "what others used does not decrease"


def test_where_nobody_tells_what_was_used_of_a_share_it_was_this_process() -> None:
    cpu = Cpu()
    meter = ModelledMeter(_power(), 256, share=CpuShare(2.0, "quota", lambda: None), cpu=cpu)
    cpu.times = CpuTimes(5.0, 2000.0, 2.0)
    assert meter.read().machine_cpu_s == 7.0


def test_a_container_with_two_of_256_threads_is_charged_for_two(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "".join(
            f"processor : {n}\nvendor_id : AuthenticAMD\ncpu family : 25\nmodel : 17\n"
            for n in range(256)
        ),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    scope = Scope(Cpu(), sys=tmp_path / "sys", proc=tmp_path / "proc")
    whole = modelled_meter(scope).idle_w["cpu"]
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    assert modelled_meter(scope).idle_w["cpu"] == pytest.approx(whole * 2 / 256)


def test_it_says_that_it_is_a_model_and_how_wide() -> None:
    meter = ModelledMeter(_power(), 4, cpu=Cpu())
    assert not meter.measured
    assert (meter.method, meter.uncertainty) == ("modelled:vcpu-specpower", 0.3)
    assert meter.idle_w == {"cpu": 2.0}
    assert ModelledMeter(_power(is_generic=True), 1).method == "modelled:vcpu-constant"


def _calibrated(tmp_path: Path, num_vcpus: int = 4) -> ModelledMeter:
    """The meter of a machine with four hardware threads and a calibration."""
    lines = (f"processor : {n}\nmodel name : A processor\n" for n in range(4))
    (tmp_path / "cpuinfo").write_text("".join(lines))
    path = tmp_path / "calibration.json"
    if num_vcpus:
        made = Calibration(40.0, 6.0, 0.08, 1.79e9, "A processor", num_vcpus, 96, "a plug")
        write_calibration(path, made)
    return modelled_meter(Scope(Cpu(), sys=tmp_path, proc=tmp_path, calibration=path))


def test_a_calibrated_machine_has_the_watts_of_its_wall_meter(tmp_path: Path) -> None:
    meter = _calibrated(tmp_path)
    assert (meter.method, meter.uncertainty) == ("modelled:calibrated", 0.08)
    assert meter.idle_w == {"cpu": pytest.approx(40.0)}
    assert not meter.measured


def test_busy_threads_add_the_dynamic_watts_of_the_calibration() -> None:
    power = Calibration(40.0, 6.0, 0.08, 1.79e9, "A processor", 4, 96, "a plug").power
    cpu, now = Cpu(), [0.0]
    meter = ModelledMeter(power, 4, cpu=cpu, clock=lambda: now[0])
    now[0], cpu.times = 10.0, CpuTimes(25.0, 25.0)
    assert meter.read().total_j == pytest.approx(40.0 * 10 + 6.0 * 25)


def test_the_calibration_of_another_machine_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _calibrated(tmp_path, num_vcpus=8).method == "modelled:vcpu-constant"
    assert "the calibration is not used" in caplog.text
    assert "of another machine (A processor, 8 hardware threads)" in caplog.text


def test_without_a_calibration_nothing_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _calibrated(tmp_path, num_vcpus=0).method == "modelled:vcpu-constant"
    assert caplog.text == ""
