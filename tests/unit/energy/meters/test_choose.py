"""The ladder takes the best rung that works, keeps the reasons, and obeys a name."""

import json
import sys
import time
from pathlib import Path

import pytest

from greenllm.config import ConfigError
from greenllm.energy.meters.choose import (
    Rung,
    choose_meter,
    climb,
    ladder,
    lost_domains,
    open_meter,
    try_meter,
)
from greenllm.energy.meters.combined import CombinedMeter
from greenllm.energy.meters.counters import rapl_meter
from greenllm.energy.meters.protocol import Meter, NullMeter, Reading, ReplayMeter, SensorError
from greenllm.energy.meters.registry import DOMAINS, METER_NAMES, METERS, why_unknown
from greenllm.energy.meters.roster import Roster
from greenllm.energy.meters.scope import Scope
from greenllm.options import MeterOptions
from tests.unit.energy.meters.driver import Driver


def _zone(sys: Path, zone: str, name: str, uj: int = 5) -> Path:
    folder = sys / "class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(name)
    (folder / "energy_uj").write_text(str(uj))
    return folder / "energy_uj"


def _rapl(sys: Path, moving: list[Path], roster: Roster | None = None) -> Rung:
    """The rung of powercap on a machine where the load moves some of the files."""

    def work(seconds: float) -> None:
        assert seconds == 0.05
        for path in moving:
            path.write_text(str(int(path.read_text()) + 1_000_000))

    return try_meter("rapl", lambda: rapl_meter(Scope(sys=sys)), "cpu", roster, work)


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
    assert (rapl.reason, hwmon.reason) == ("no rapl counters found", "no hwmon counters found")
    assert modelled.meter is not None
    assert modelled.meter.method.startswith("modelled:")


def test_a_package_that_moves_under_load_makes_a_rung(tmp_path: Path) -> None:
    rung = _rapl(tmp_path, [_zone(tmp_path, "intel-rapl:0", "package-0")])
    assert rung.meter is not None
    assert (rung.meter.method, rung.reason) == ("measured:rapl", "works")
    assert rung.meter.read().joules == {"cpu": 1.0}


def test_a_package_that_stands_still_is_not_chosen(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0")
    rung = _rapl(tmp_path, [])
    assert (rung.meter, rung.reason) == (None, "stands still under load: package-0")
    assert _choose("auto", [], [rung, _works("modelled")]).method == "modelled"


def test_of_two_packages_the_one_that_stands_still_is_named(tmp_path: Path) -> None:
    one, _ = (_zone(tmp_path, f"intel-rapl:{i}", f"package-{i}") for i in (0, 1))
    rung = _rapl(tmp_path, [one])
    assert (rung.meter, rung.reason) == (None, "stands still under load: package-1")


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_stands_still_is_left_out_with_a_warning(
    tmp_path: Path, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    package = _zone(tmp_path, "intel-rapl:0", "package-0")
    _zone(tmp_path, "intel-rapl:0:0", "dram", 0)
    roster = Roster(tmp_path / "roster") if shared else None
    rung = _rapl(tmp_path, [package], roster)
    assert rung.reason == "works, but stands still under load: dram:0"
    meter = _choose("auto", [], [rung])
    reading = meter.read()
    assert (set(reading.joules), reading.lost) == ({"cpu"}, {})
    assert "stands still under load: dram:0" in caplog.text
    if roster is not None:
        roster.leave()


def test_a_model_need_not_be_put_to_work() -> None:
    def work(seconds: float) -> None:
        raise AssertionError("a model has no counters")

    assert try_meter("x", lambda: ReplayMeter([Reading(1.0)]), work=work).reason == "works"


def test_a_machine_without_a_driver_has_no_gpu_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    rungs = list(ladder("gpu", Scope()))
    assert [(rung.name, rung.meter) for rung in rungs] == [("nvml", None), ("nvml-power", None)]
    assert "pynvml" in rungs[0].reason
    meter, first = open_meter(MeterOptions())
    assert first.lost == {}
    assert meter.method.startswith("modelled:")


def _broken_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(init_error="driver/library version mismatch")
    monkeypatch.setitem(sys.modules, "pynvml", driver)


def test_a_gpu_that_computes_and_cannot_be_metered_is_lost_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _broken_driver(monkeypatch)
    scope = Scope(devices=("cuda:0",), sys=tmp_path, cuda=lambda: ("0-board",))
    meter, first = open_meter(MeterOptions(), scope)
    assert first.lost == {"gpu": "nvml: driver/library version mismatch"}
    assert set(first.joules) == {"cpu"}
    assert meter.method.endswith("+unknown:gpu")


@pytest.mark.parametrize("devices", [(), ("cuda:0",), None])
def test_a_broken_driver_is_nothing_to_a_model_on_the_cpu(
    devices: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was sent there or found no CUDA."""
    _broken_driver(monkeypatch)
    scope = Scope(devices=devices, sys=tmp_path, cuda=lambda: ())
    meter, first = open_meter(MeterOptions(), scope)
    assert (first.lost, set(first.joules)) == ({}, {"cpu"})
    assert "unknown" not in meter.method


def test_a_gpu_that_is_metered_is_not_lost() -> None:
    assert lost_domains({"gpu": [_works("nvml")]}, Scope(cuda=lambda: ("0-board",))) == {}


def test_an_energy_counter_that_stands_still_gives_way_to_power(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(energy_mj=[1000], power_mw=[70_000])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    counter, power = ladder("gpu", Scope(cuda=lambda: None))
    assert (counter.meter, counter.reason) == (None, "stands still under load: GPU 0")
    assert power.meter is not None
    assert power.meter.method == "measured:nvml-power"


def test_rungs_below_the_chosen_one_are_not_tried() -> None:
    rungs = iter([_fails("a"), _works("b"), _works("c")])
    assert [rung.name for rung in climb(rungs)] == ["a", "b"]
    assert next(rungs).name == "c"


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
    with pytest.raises(
        SensorError, match=r"'wattmeter'.*auto, nvml, nvml-power, rapl.*replay:FILE"
    ):
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
        open_meter(MeterOptions(meter="nvml"), Scope(devices=()))
    meter, _ = open_meter(MeterOptions(), Scope(devices=()))
    assert "gpu" not in meter.read().joules


def test_servers_on_one_machine_share_its_meter(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "roster")
    meter, _ = open_meter(MeterOptions(meter="modelled"), Scope(roster=roster))
    assert meter.method.startswith("modelled:")
    assert meter.read().floor_s is not None
    roster.leave()
