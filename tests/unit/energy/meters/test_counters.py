"""RAPL and hwmon on made-up sysfs trees: each counter once, over wraps, resets and failures."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.meters.counters import CounterFile, FileCounterMeter, find_hwmon, find_rapl
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import SensorError

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


def _meter(counters: list[CounterFile]) -> FileCounterMeter:
    cpu = CpuClock(Path("nowhere"), own_s=lambda: 0.0, clock=lambda: 0.0)
    return FileCounterMeter(counters, method="measured:test", cpu=cpu, clock=lambda: 1.0)


def _single(tmp_path: Path, uj: int, range_uj: int | None = None) -> tuple[Path, FileCounterMeter]:
    path = tmp_path / "energy_uj"
    path.write_text(str(uj))
    return path, _meter([CounterFile(path, "cpu", range_uj)])


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
    meter = _meter(find_rapl(tmp_path))
    assert meter.read().joules == {"cpu": 0, "dram": 0}
    packages[0].write_text("1500000")
    packages[1].write_text("5500000")
    dram.write_text("250007")
    reading = meter.read()
    assert reading.joules == pytest.approx({"cpu": 2.0, "dram": 0.25})
    assert (reading.at_s, reading.own_cpu_s) == (1.0, 0.0)


def test_a_wrap_is_continued_by_the_published_range(tmp_path: Path) -> None:
    path, meter = _single(tmp_path, RANGE_UJ - 1_000_000, RANGE_UJ)
    path.write_text("2000000")
    assert meter.read().total_j == pytest.approx(3.0)


@pytest.mark.parametrize("range_uj", [None, RANGE_UJ, 500_000])
def test_a_reset_continues_from_zero(tmp_path: Path, range_uj: int | None) -> None:
    """Also where a wrap would mean more than half the range in one window."""
    path, meter = _single(tmp_path, 9_000_000, range_uj)
    path.write_text("10000000")
    meter.read()
    path.write_text("2000000")
    assert meter.read().total_j == pytest.approx(1.0 + 2.0)
    path.write_text("2500000")
    assert meter.read().total_j == pytest.approx(3.5)


@pytest.mark.parametrize("range_uj", [None, RANGE_UJ])
def test_a_counter_that_slips_back_does_not_add_its_whole_past(
    tmp_path: Path, range_uj: int | None
) -> None:
    path, meter = _single(tmp_path, 200_000_000_000, range_uj)
    path.write_text("199999999990")
    assert meter.read().total_j == 0
    path.write_text("200000000990")
    assert meter.read().total_j == pytest.approx(0.001)


@settings(max_examples=40)
@given(st.lists(st.integers(0, RANGE_UJ // 2 - 1), max_size=20), st.integers(0, RANGE_UJ))
def test_any_sequence_of_wraps_is_followed_exactly(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int
) -> None:
    path, meter = _single(tmp_path_factory.mktemp("wrap"), start, RANGE_UJ)
    raw, before_j = start, 0.0
    for step in steps:
        raw += step
        raw -= RANGE_UJ if raw > RANGE_UJ else 0
        path.write_text(str(raw))
        total_j = meter.read().total_j
        assert total_j >= before_j
        before_j = total_j
    assert before_j == pytest.approx(sum(steps) * 1e-6)


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
    path, meter = _single(tmp_path, 0)

    def denied(self: Path) -> str:
        raise PermissionError(13, f"Permission denied: {self}")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(SensorError, match=r"permission denied; run `greenllm doctor`"):
        meter.read()
    with pytest.raises(SensorError, match="permission denied"):
        _meter([CounterFile(path, "cpu")])


def test_nonsense_in_a_counter_is_a_sensor_error(tmp_path: Path) -> None:
    path, meter = _single(tmp_path, 0)
    path.write_text("many\n")
    with pytest.raises(SensorError, match="energy_uj"):
        meter.read()


def test_no_counters_are_a_sensor_error() -> None:
    with pytest.raises(SensorError, match="measured:test: no counters found"):
        _meter([])


def test_it_is_measured_and_its_idle_power_has_to_be_learnt(tmp_path: Path) -> None:
    _, meter = _single(tmp_path, 0)
    assert meter.measured
    assert meter.idle_w is None
    assert meter.method == "measured:test"
