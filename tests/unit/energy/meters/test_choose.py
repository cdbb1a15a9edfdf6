"""The ladder takes the best rung that works, keeps the reasons, and obeys a name."""

import json
import sys
import time
from pathlib import Path

import pytest

from greenllm.config import ConfigError
from greenllm.energy.meters.choose import Rung, choose_meter, ladder, open_meter, try_meter
from greenllm.energy.meters.protocol import (
    CombinedMeter,
    Meter,
    NullMeter,
    Reading,
    ReplayMeter,
    SensorError,
)
from greenllm.energy.meters.registry import DOMAINS, METER_NAMES, METERS, why_unknown
from greenllm.energy.meters.roster import Roster
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.sharing import SharedMeter
from greenllm.options import MeterOptions


def _works(name: str) -> Rung:
    return Rung(name, ReplayMeter([Reading(0.0, {name: 1.0})], method=name), "works")


def _fails(name: str, reason: str = "is not there") -> Rung:
    return Rung(name, None, reason)


def _choose(name: str, gpu: list[Rung], cpu: list[Rung]) -> Meter:
    return choose_meter(name, {"gpu": gpu, "cpu": cpu})


def test_a_rung_that_works_is_read_once() -> None:
    meter = ReplayMeter([None, Reading(1.0)])
    rung = try_meter("x", lambda: meter)
    assert rung == Rung("x", None, "replay: recorded sensor failure")
    assert try_meter("x", lambda: meter) == Rung("x", meter, "works")


def test_a_rung_that_cannot_be_made_leaves_its_reason() -> None:
    def make() -> Meter:
        raise SensorError("no such sensor")

    assert try_meter("x", make) == Rung("x", None, "no such sensor")


def test_cpu_rungs_are_ordered_and_the_model_always_works(tmp_path: Path) -> None:
    rapl, hwmon, modelled = ladder("cpu", Scope(sys=tmp_path))
    assert [rung.name for rung in (rapl, hwmon, modelled)] == ["rapl", "hwmon", "modelled"]
    assert rapl.meter is hwmon.meter is None
    assert "no counters found" in rapl.reason
    assert modelled.meter is not None
    assert modelled.meter.method.startswith("modelled:")


def test_a_rapl_zone_makes_a_rung(tmp_path: Path) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0")
    (zone / "energy_uj").write_text("5")
    meter = next(ladder("cpu", Scope(sys=tmp_path))).meter
    assert meter is not None
    assert meter.method == "measured:rapl"


def test_a_machine_without_a_driver_has_no_gpu_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (rung,) = ladder("gpu", Scope())
    assert (rung.name, rung.meter) == ("nvml", None)
    assert "pynvml" in rung.reason


def test_auto_takes_the_best_of_each_domain() -> None:
    meter = _choose("auto", [_works("nvml")], [_fails("rapl"), _works("hwmon"), _works("modelled")])
    assert isinstance(meter, CombinedMeter)
    assert meter.method == "nvml+hwmon"


def test_auto_without_a_gpu_is_the_cpu_meter_alone() -> None:
    meter = _choose("auto", [_fails("nvml")], [_works("rapl"), _works("modelled")])
    assert meter.method == "rapl"


def test_auto_without_anything_is_unknown_and_not_zero() -> None:
    meter = _choose("auto", [_fails("nvml")], [_fails("rapl")])
    assert isinstance(meter, NullMeter)
    assert meter.read().joules == {}


@pytest.mark.parametrize("name", ["nvml", "rapl", "modelled"])
def test_a_name_is_taken_literally(name: str) -> None:
    rungs = [_works("rapl"), _works("modelled")]
    assert _choose(name, [_works("nvml")], rungs).method == name


def test_a_name_that_does_not_work_says_why_and_nothing_replaces_it() -> None:
    with pytest.raises(SensorError, match="meter rapl does not work here: permission denied"):
        _choose("rapl", [], [_fails("rapl", "permission denied"), _works("modelled")])


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(SensorError, match=r"'wattmeter'.*auto, nvml, rapl.*replay:FILE"):
        _choose("wattmeter", [], [_works("rapl")])


def test_a_replay_runs_on_the_servers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no reading would ever be later than a request's end."""
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"at_s": 0.0, "joules": {"cpu": 4.0}}))
    monkeypatch.setattr(time, "monotonic", lambda: 321.0)
    _, first = open_meter(MeterOptions(meter=f"replay:{path}"))
    assert first == Reading(321.0, {"cpu": 4.0})


def test_a_replay_of_nothing_is_a_sensor_error(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="cannot use"):
        choose_meter(f"replay:{tmp_path / 'nothing'}", {})


def test_every_meter_of_the_registry_can_be_asked_for() -> None:
    for entry in METERS:
        assert entry.domain in DOMAINS
        assert entry.name in METER_NAMES
        assert why_unknown(entry.name) is None
        (rung,) = ladder(entry.domain, Scope(), entry.name)
        assert rung.name == entry.name


def test_a_meter_asked_for_is_the_only_one_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is slow to begin with, and says things on standard error."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter, first = open_meter(MeterOptions(meter="modelled"))
    assert meter.method.startswith("modelled:")
    assert first.joules
    with pytest.raises(ConfigError, match=r"^--meter nvml: meter nvml does not work") as caught:
        open_meter(MeterOptions(meter="nvml"))
    assert caught.value.option == "meter"


def test_what_computes_on_the_cpu_is_not_metered_on_gpus() -> None:
    with pytest.raises(ConfigError, match="meter nvml is for devices that are not metered here"):
        open_meter(MeterOptions(meter="nvml"), Scope(gpus=False))
    meter, _ = open_meter(MeterOptions(), Scope(gpus=False))
    assert "gpu" not in meter.read().joules


def test_servers_on_one_machine_share_its_meter(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "roster")
    meter, _ = open_meter(MeterOptions(meter="modelled"), Scope(roster=roster))
    assert isinstance(meter, SharedMeter)
    assert meter.method.startswith("modelled:")
    roster.leave()
