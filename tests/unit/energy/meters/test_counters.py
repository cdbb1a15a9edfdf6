"""RAPL and hwmon on made-up sysfs trees: each counter once, over wraps, resets and failures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from greenllm.energy.meters.counters import (
    CounterFile,
    FileCounterMeter,
    each_once,
    find_hwmon,
    find_rapl,
    rapl_meter,
)
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Reading, SensorError, StillError
from greenllm.energy.meters.scope import Scope

RANGE_UJ = 262_143_328_850


def _zone(sys: Path, zone: str, name: str, uj: int = 0, range_uj: int | None = RANGE_UJ) -> Path:
    folder = sys / "class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{uj}\n")
    if range_uj is not None:
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def _chip(sys: Path, number: int, name: str, labels: list[str]) -> Path:
    folder = sys / "class/hwmon" / f"hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for i, label in enumerate(labels, 1):
        (folder / f"energy{i}_label").write_text(f"{label}\n")
        (folder / f"energy{i}_input").write_text("0\n")
    return folder


class Clock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _meter(counters: list[CounterFile], clock: Clock | None = None) -> FileCounterMeter:
    cpu = CpuClock(Path("nowhere"), own_s=lambda: 0.0, clock=lambda: 0.0)
    return FileCounterMeter(counters, method="measured:test", cpu=cpu, clock=clock or Clock())


class Zone:
    """One counter file and its meter, read at moments that the test chooses."""

    def __init__(self, folder: Path, uj: int, range_uj: int | None = None) -> None:
        self.path = folder / "energy_uj"
        self.path.write_text(str(uj))
        self.clock = Clock()
        counter = CounterFile(self.path, "cpu", range_uj, "package-0", 200.0)
        self.meter = _meter([counter], self.clock)

    def after(self, seconds: float, uj: int) -> Reading:
        """A reading when the file has said this for a moment."""
        self.clock.now_s += seconds
        self.path.write_text(str(uj))
        return self.meter.read()


def test_rapl_counts_packages_and_dram_of_two_sockets_once(tmp_path: Path) -> None:
    for socket in (0, 1):
        _zone(tmp_path, f"intel-rapl:{socket}", f"package-{socket}")
        _zone(tmp_path, f"intel-rapl:{socket}:0", "core")
        _zone(tmp_path, f"intel-rapl:{socket}:1", "uncore")
        _zone(tmp_path, f"intel-rapl:{socket}:2", "dram")
    _zone(tmp_path, "intel-rapl:2", "psys")
    (tmp_path / "class/powercap/intel-rapl").mkdir()
    found = {(counter.path.parent.name, counter.domain) for counter in find_rapl(tmp_path)}
    assert found == {
        ("intel-rapl:0", "cpu"),
        ("intel-rapl:1", "cpu"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:1:2", "dram"),
    }


def test_zones_of_the_folder_that_containers_mount_lie_in_their_package(tmp_path: Path) -> None:
    for socket in (0, 1):
        package = f"intel-rapl:{socket}"
        _zone(tmp_path, package, f"package-{socket}")
        _zone(tmp_path, f"{package}/{package}:0", "core")
        _zone(tmp_path, f"{package}/{package}:1", "dram")
    found = find_rapl(tmp_path)
    assert [counter.path.parent.name for counter in found] == [
        *("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:1", "intel-rapl:1:1")
    ]


def test_links_beside_the_zones_that_they_lead_to_are_one_counter(tmp_path: Path) -> None:
    real = tmp_path / "devices"
    _zone(real, "intel-rapl:0", "package-0")
    _zone(real, "intel-rapl:0/intel-rapl:0:0", "dram")
    folder = tmp_path / "class/powercap"
    folder.mkdir(parents=True)
    for zone in ("intel-rapl:0", "intel-rapl:0/intel-rapl:0:0"):
        (folder / Path(zone).name).symlink_to(real / "class/powercap" / zone)
    found = find_rapl(tmp_path)
    assert [counter.path.parent.name for counter in found] == ["intel-rapl:0", "intel-rapl:0:0"]


def test_msr_and_mmio_views_of_one_package_are_one_counter(tmp_path: Path) -> None:
    for view in ("intel-rapl", "intel-rapl-mmio"):
        _zone(tmp_path, f"{view}:0", "package-0")
        _zone(tmp_path, f"{view}:0:0", "dram")
    domains = sorted(counter.domain for counter in find_rapl(tmp_path))
    assert domains == ["cpu", "dram"]


def test_dies_of_one_package_are_different_counters(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0-die-0")
    _zone(tmp_path, "intel-rapl:1", "package-0-die-1")
    assert len(find_rapl(tmp_path)) == 2


def _work(zones: list[Path], step_uj: list[int]) -> Callable[[float], None]:
    def work(seconds: float) -> None:
        for zone, uj in zip(zones, step_uj, strict=True):
            zone.write_text(str(int(zone.read_text()) + uj))

    return work


@pytest.mark.parametrize(
    ("first_uj", "steps_uj", "left"),
    [
        ([7_000_000, 7_000_900], [9_000_000, 9_000_000], ["package-0-die-0"]),
        ([0, 0], [9_000_000, 4_000_000], ["package-0-die-0", "package-0-die-1"]),
        ([0, 0], [9_000, 9_000], ["package-0-die-0", "package-0-die-1"]),
    ],
)
def test_dies_that_count_their_whole_socket_are_one_counter(
    tmp_path: Path, first_uj: list[int], steps_uj: list[int], left: list[str]
) -> None:
    """Where they say the same while the machine works; where too little moves, both stay."""
    zones = [
        _zone(tmp_path, f"intel-rapl:{i}", f"package-0-die-{i}", uj=uj)
        for i, uj in enumerate(first_uj)
    ]
    found = each_once(find_rapl(tmp_path), _work(zones, steps_uj))
    assert [counter.name for counter in found] == left


def test_sockets_that_differ_need_not_be_put_to_work(tmp_path: Path) -> None:
    for i in (0, 1):
        _zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", uj=i * 50_000_000)

    def work(seconds: float) -> None:
        raise AssertionError("they are different")

    assert len(each_once(find_rapl(tmp_path), work)) == 2


def test_the_published_range_is_kept_and_nonsense_ignored(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0", range_uj=1000)
    _zone(tmp_path, "intel-rapl:1", "package-1", range_uj=None)
    assert [counter.range_uj for counter in find_rapl(tmp_path)] == [1000, None]


def test_no_powercap_and_no_hwmon_find_nothing(tmp_path: Path) -> None:
    assert find_rapl(tmp_path) == find_hwmon(tmp_path) == []


def test_hwmon_takes_sockets_and_leaves_cores_and_other_chips(tmp_path: Path) -> None:
    _chip(tmp_path, 0, "amd_energy", ["Ecore000", "Ecore001", "Esocket0", "Esocket1"])
    _chip(tmp_path, 1, "coretemp", ["Esocket0"])
    _chip(tmp_path, 2, "zenergy", ["Esocket0"])
    found = [
        (counter.path.parent.name, counter.path.name, counter.domain, counter.range_uj)
        for counter in find_hwmon(tmp_path)
    ]
    assert found == [
        ("hwmon0", "energy3_input", "cpu", None),
        ("hwmon0", "energy4_input", "cpu", None),
        ("hwmon2", "energy1_input", "cpu", None),
    ]


def test_joules_start_at_zero_and_add_per_domain(tmp_path: Path) -> None:
    packages = [
        _zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", uj=5_000_000 * i) for i in (0, 1)
    ]
    dram = _zone(tmp_path, "intel-rapl:0:0", "dram", uj=7)
    meter = rapl_meter(Scope(sys=tmp_path))
    assert meter.read().joules == {"cpu": 0, "dram": 0}
    packages[0].write_text("1500000")
    packages[1].write_text("5500000")
    dram.write_text("250007")
    assert meter.read().joules == pytest.approx({"cpu": 2.0, "dram": 0.25})
    assert meter.method == "measured:rapl"


def test_memory_that_cannot_be_read_leaves_the_processors_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0")
    _zone(tmp_path, "intel-rapl:0:0", "dram").write_text("nothing")
    assert set(rapl_meter(Scope(sys=tmp_path)).read().joules) == {"cpu"}
    assert "memory is not metered" in caplog.text


def test_a_reading_has_its_moment_and_the_cpu_times(tmp_path: Path) -> None:
    reading = Zone(tmp_path, 0).after(1.0, 5_000_000)
    assert (reading.at_s, reading.own_cpu_s, reading.total_j) == (1.0, 0.0, 5.0)
    assert reading.as_of_s == {}, "it ticks every millisecond"


def test_a_wrap_loses_nothing_and_is_no_gap(tmp_path: Path) -> None:
    zone = Zone(tmp_path, RANGE_UJ - 1_000_000, RANGE_UJ)
    wrapped = zone.after(1.0, 2_000_000)
    assert wrapped.total_j == 0
    assert wrapped.as_of_s["cpu"] <= 0, "until a second reading confirms it, nothing is new"
    later = zone.after(1.0, 52_000_000)
    assert later.total_j == pytest.approx(53.0)
    assert wrapped.gaps == later.gaps == frozenset()
    assert not later.num_faults


def test_one_reading_of_zero_is_no_wrap(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 200_000_000_000, 262_144_000_000)
    assert zone.after(0.5, 0).gaps == {"cpu"}
    reading = zone.after(0.5, 200_001_000_000)
    assert reading.total_j == pytest.approx(1.0)
    assert reading.gaps == frozenset()


def test_one_reading_of_nonsense_adds_nothing_and_the_way_back_what_is_true(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 5_000_000_000)
    glitch = zone.after(0.5, 2**63)
    assert glitch.total_j == 0
    assert glitch.gaps == {"cpu"}
    assert zone.after(0.5, 5_030_000_000).total_j == pytest.approx(30.0)


def test_nonsense_that_lasts_is_left_behind(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 5_000_000_000)
    zone.after(0.5, 2**63)
    zone.after(0.5, 2**63)
    zone.after(0.5, 5_030_000_000)
    reading = zone.after(0.5, 5_040_000_000)
    assert reading.total_j == pytest.approx(10.0)
    assert reading.gaps == {"cpu"}, "what was used meanwhile is not known"


@pytest.mark.parametrize("range_uj", [None, RANGE_UJ])
def test_a_reset_is_a_gap_and_goes_on_from_zero(tmp_path: Path, range_uj: int | None) -> None:
    zone = Zone(tmp_path, 90_000_000_000, range_uj)
    assert zone.after(1.0, 90_100_000_000).total_j == pytest.approx(100.0)
    seen = zone.after(1.0, 20_000_000)
    confirmed = zone.after(1.0, 120_000_000)
    assert seen.total_j == pytest.approx(100.0)
    assert confirmed.total_j == pytest.approx(220.0)
    assert seen.gaps == confirmed.gaps == {"cpu"}
    after = zone.after(1.0, 220_000_000)
    assert after.total_j == pytest.approx(320.0)
    assert not after.gaps


def test_a_counter_that_slips_back_counts_no_joule_twice(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 200_000_000_000, RANGE_UJ)
    slipped = zone.after(1.0, 199_999_000_000)
    assert slipped.total_j == 0
    assert not slipped.gaps
    assert zone.after(1.0, 200_001_000_000).total_j == pytest.approx(1.0)


def test_a_counter_that_stands_still_is_told(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 5)
    zone.after(9.0, 5)
    with pytest.raises(StillError, match="package-0 stands still"):
        zone.after(1.5, 5)
    assert zone.after(1.0, 100_000_005).total_j == pytest.approx(100.0)


def test_one_of_two_packages_that_stands_still_is_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two")]
    for path in files:
        path.write_text("0")
    clock = Clock()
    meter = _meter([CounterFile(path, "cpu", None, path.name) for path in files], clock)
    clock.now_s = 11.0
    files[0].write_text("9")
    with pytest.raises(StillError, match="two stands still"):
        meter.read()


def test_the_largest_limit_of_a_zone_bounds_it(tmp_path: Path) -> None:
    folder = _zone(tmp_path, "intel-rapl:0", "package-0").parent
    (folder / "constraint_0_max_power_uw").write_text("65000000")
    (folder / "constraint_0_power_limit_uw").write_text("0")
    (folder / "constraint_1_power_limit_uw").write_text("120000000")
    _zone(tmp_path, "intel-rapl:1", "package-1")
    limits_w = [counter.largest_w for counter in find_rapl(tmp_path)]
    assert limits_w == pytest.approx([120.0, 1000.0])


def test_a_file_that_vanishes_fails_and_loses_nothing_when_it_returns(tmp_path: Path) -> None:
    gone = _zone(tmp_path, "intel-rapl:0", "package-0")
    steady = _zone(tmp_path, "intel-rapl:1", "package-1")
    meter = _meter(find_rapl(tmp_path))
    gone.unlink()
    steady.write_text("1000000")
    with pytest.raises(SensorError, match=r"intel-rapl:0.*energy_uj"):
        meter.read()
    gone.write_text("2000000")
    assert meter.read().total_j == pytest.approx(3.0)


def test_a_denied_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone(tmp_path, 0)

    def denied(self: Path) -> str:
        raise PermissionError(13, f"Permission denied: {self}")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(SensorError, match=r"permission denied; run `greenllm doctor`"):
        zone.meter.read()
    with pytest.raises(SensorError, match="permission denied"):
        _meter([CounterFile(zone.path, "cpu")])


def test_nonsense_in_a_counter_is_a_sensor_error(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 0)
    zone.path.write_text("many\n")
    with pytest.raises(SensorError, match="energy_uj"):
        zone.meter.read()


def test_no_counters_are_a_sensor_error() -> None:
    with pytest.raises(SensorError, match=r"^no test counters found"):
        _meter([])


def test_it_is_measured_and_its_idle_power_has_to_be_learnt(tmp_path: Path) -> None:
    meter = Zone(tmp_path, 0).meter
    assert meter.measured
    assert meter.idle_w is None
    assert meter.method == "measured:test"
