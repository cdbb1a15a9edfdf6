"""Zeus' device layer, with the shape of its version 0.16: AMD GPUs, Jetson and Apple chips."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from greenllm.energy.meters.choose import ladder, open_meter
from greenllm.energy.meters.combined import CombinedMeter
from greenllm.energy.meters.protocol import SensorError
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.zeus import zeus_gpu_meter, zeus_soc_meter
from greenllm.options import MeterOptions


class ZeusError(Exception):
    """One of the errors of Zeus, or of a library below it."""


class AMDGPUs:
    """Zeus' manager of AMD GPUs: None is a counter that it does not trust."""

    def __init__(self, energy_mj: list[int | None], limit_mw: int | None = 750_000) -> None:
        self.energy_mj = energy_mj
        self.limit_mw = limit_mw

    def __len__(self) -> int:
        return len(self.energy_mj)

    def supports_get_total_energy_consumption(self, gpu_index: int) -> bool:
        return self.energy_mj[gpu_index] is not None

    def get_power_management_limit(self, gpu_index: int) -> int:
        if self.limit_mw is None:
            raise ZeusError("not supported")
        return self.limit_mw

    def get_total_energy_consumption(self, gpu_index: int) -> int:
        value = self.energy_mj[gpu_index]
        if value is None:
            raise ZeusError("gpu\n lost")
        return value


class NVIDIAGPUs(AMDGPUs):
    """Zeus' manager of NVIDIA's GPUs, which it prefers."""


@dataclass
class AppleSiliconMeasurement:
    """The fields that matter, of eleven."""

    cpu_total_mj: int | None = 1_000_000
    dram_mj: int | None = 200_000
    gpu_mj: int | None = 500_000
    gpu_sram_mj: int | None = 10_000


@dataclass
class JetsonMeasurement:
    cpu_energy_mj: float | None = 1000.0
    gpu_energy_mj: float | None = 5000.0
    total_energy_mj: float | None = 9000.0


class Chip:
    """A chip with whatever measurement it is given."""

    def __init__(self, measurement: Any) -> None:
        self.measurement = measurement

    def get_total_energy_consumption(self) -> Any:
        return self.measurement


def _install(monkeypatch: pytest.MonkeyPatch, *, gpus: Any = None, soc: Any = None) -> None:
    """Zeus on a machine that has what is given."""

    def found(thing: Any) -> Any:
        if thing is None:
            raise ZeusError("nothing is there")
        return thing

    module = ModuleType("zeus.device")
    module.get_gpus = lambda ensure_homogeneous=False: found(gpus)  # type: ignore[attr-defined]
    module.get_soc = lambda: found(soc)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.device", module)


def _scope(tmp_path: Path, **changes: Any) -> Scope:
    return Scope(sys=tmp_path, cuda=lambda: (), **changes)


def test_the_gpus_that_compute_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus = AMDGPUs([1_000_000, 2_000_000, 3_000_000])
    _install(monkeypatch, gpus=gpus)
    meter = zeus_gpu_meter(_scope(tmp_path, devices=("cuda:0", "cuda:2")))
    assert (meter.method, meter.measured, meter.domain) == ("measured:zeus-gpu", True, "gpu")
    assert meter.read().joules == {"gpu": 0.0}
    gpus.energy_mj = [1_010_000, 2_900_000, 3_020_000]
    assert meter.read().joules == {"gpu": pytest.approx(30.0)}


def test_all_gpus_without_a_limit_are_believed_within_a_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus = AMDGPUs([0, 0], limit_mw=None)
    _install(monkeypatch, gpus=gpus)
    meter = zeus_gpu_meter(_scope(tmp_path))
    gpus.energy_mj = [10**15, 5000]
    reading = meter.read()
    assert reading.joules == {"gpu": 0.0}
    assert reading.num_faults == {"gpu": 1}


@pytest.mark.parametrize(
    ("gpus", "devices", "why"),
    [
        (None, None, "zeus: GPUs: nothing is there"),
        (NVIDIAGPUs([1]), None, "metered by nvml"),
        (AMDGPUs([]), None, "zeus: no GPU"),
        (AMDGPUs([1, None]), None, "GPU 1 has no energy counter that Zeus trusts"),
        (AMDGPUs([1, None]), ("cuda:2",), "cuda:2 is not among the 2 GPUs"),
        (AMDGPUs([1]), ("GPU-0-board",), "GPU-0-board is not among the 1 GPUs"),
    ],
)
def test_gpus_that_cannot_be_metered_say_why(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gpus: Any,
    devices: tuple[str, ...] | None,
    why: str,
) -> None:
    _install(monkeypatch, gpus=gpus)
    with pytest.raises(SensorError, match=why):
        zeus_gpu_meter(_scope(tmp_path, devices=devices))


def test_a_gpu_that_is_lost_is_a_sensor_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus = AMDGPUs([1000])
    _install(monkeypatch, gpus=gpus)
    meter = zeus_gpu_meter(_scope(tmp_path))
    gpus.energy_mj = [None]
    with pytest.raises(SensorError, match="zeus: GPU 0: gpu lost"):
        meter.read()


def _watch(soc: Chip, meter: CombinedMeter, later: Any) -> dict[str, float]:
    meter.read()
    soc.measurement = later
    return dict(meter.read().joules)


def test_apples_chip_has_processors_and_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its GPU is left out: nothing here computes on it."""
    soc = Chip(AppleSiliconMeasurement())
    _install(monkeypatch, soc=soc)
    meter = zeus_soc_meter(_scope(tmp_path))
    later = AppleSiliconMeasurement(1_020_000, 204_000, 900_000, 20_000)
    assert _watch(soc, meter, later) == {"cpu": pytest.approx(20.0), "dram": pytest.approx(4.0)}
    assert meter.method == "measured:zeus-soc"
    assert meter.read().own_cpu_s is not None


@pytest.mark.parametrize(
    ("devices", "domains"), [(None, {"cpu", "gpu"}), (("cuda:0",), {"cpu", "gpu"}), ((), {"cpu"})]
)
def test_a_jetson_has_processors_and_the_gpu_where_it_computes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    devices: tuple[str, ...] | None,
    domains: set[str],
) -> None:
    soc = Chip(JetsonMeasurement())
    _install(monkeypatch, soc=soc)
    meter = zeus_soc_meter(_scope(tmp_path, devices=devices))
    expected = {"cpu": 2.0, "gpu": 10.0}
    seen = _watch(soc, meter, JetsonMeasurement(3000.0, 15_000.0, 30_000.0))
    assert seen == pytest.approx({domain: expected[domain] for domain in domains})


def test_a_rail_that_is_not_there_is_no_domain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _install(monkeypatch, soc=Chip(JetsonMeasurement(gpu_energy_mj=None)))
    assert set(zeus_soc_meter(_scope(tmp_path)).read().joules) == {"cpu"}
    _install(monkeypatch, soc=Chip(JetsonMeasurement(cpu_energy_mj=None)))
    with pytest.raises(SensorError, match="does not tell the joules of its processors"):
        zeus_soc_meter(_scope(tmp_path))


def test_a_figure_that_vanishes_is_a_sensor_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soc = Chip(JetsonMeasurement(gpu_energy_mj=None))
    _install(monkeypatch, soc=soc)
    (part,) = zeus_soc_meter(_scope(tmp_path)).parts
    soc.measurement = JetsonMeasurement(cpu_energy_mj=None)
    with pytest.raises(SensorError, match="cpu_energy has no figure any more"):
        part.read()


def test_without_the_extra_its_name_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    for make in (zeus_gpu_meter, zeus_soc_meter):
        with pytest.raises(SensorError, match=r"pip install 'greenllm\[zeus\]'"):
            make(_scope(tmp_path))


def test_they_are_tried_only_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soc = Chip(JetsonMeasurement())
    _install(monkeypatch, gpus=AMDGPUs([1000]), soc=soc)
    later = JetsonMeasurement(3000.0, 15_000.0)
    scope = _scope(tmp_path, work=lambda seconds: setattr(soc, "measurement", later))
    names = {rung.name for domain in ("gpu", "cpu") for rung in ladder(domain, scope)}
    assert not any(name.startswith("zeus") for name in names)
    meter, first = open_meter(MeterOptions(meter="zeus-soc"), scope)
    assert meter.method == "measured:zeus-soc"
    assert first.joules == pytest.approx({"cpu": 2.0, "gpu": 10.0})
