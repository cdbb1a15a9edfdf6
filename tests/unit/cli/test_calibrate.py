"""`greenllm calibrate`: fits, keeps and forgets; refuses what would be counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from greenllm.cli import calibrate, doctor
from greenllm.cli.app import app
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.calibration.course import Stage
from greenllm.energy.calibration.fit import FitError, PowerSample
from greenllm.energy.calibration.wall import FileWall, WallMeter
from greenllm.energy.calibration.wall_url import UrlWall
from greenllm.energy.hardware import read_cpu_info
from greenllm.energy.meters.calibrated import read_calibration
from greenllm.energy.meters.choose import Rung
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.modelled import modelled_meter
from greenllm.energy.meters.protocol import Reading, ReplayMeter

NO_GPU = [Rung("nvml", None, "nvml: no driver")]


class Course:
    """A course that is over at once."""

    dynamic_w = 6.0
    last_w: float | None = None

    def __init__(self, wall: WallMeter, cpu: CpuClock) -> None:
        pass

    def run(self, stages: Sequence[Stage]) -> Iterator[Stage]:
        yield from stages

    def samples(self, wait_s: float) -> list[PowerSample]:
        return [PowerSample(n, 40 + self.dynamic_w * n) for n in (0.0, 1.0, 2.0)] * 4


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a GPU, and the file of its calibration."""
    monkeypatch.setenv("GREENLLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(calibrate, "Course", Course)
    monkeypatch.setattr(calibrate, "ladder", lambda domain, scope: NO_GPU)
    return tmp_path / "data" / "calibration.json"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", *arguments])


def test_a_calibration_is_kept_used_shown_and_forgotten(machine: Path, tmp_path: Path) -> None:
    result = run("--meter-watts", str(tmp_path / "plug.csv"))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"wall meter {tmp_path / 'plug.csv'}: — W"
    assert "stage 1 of" in lines[1]
    assert "idle, 30 s" in lines[1]
    assert "(wall meter: — W)" in lines[2], "that nothing is read shows at once"
    assert "idle 40 W, 6 W per busy hardware thread, ± 3% (90 %, 12 samples of" in result.output
    assert "power supply, fans" in result.output
    cpu = read_cpu_info()
    found = read_calibration(machine, cpu)
    assert found is not None
    assert (found.idle_w, found.dynamic_w) == pytest.approx((40.0, 6.0))
    assert modelled_meter().method == "modelled:calibrated"
    (line,) = doctor.calibration_lines(machine, cpu)
    assert line.startswith("calibrated 2")
    assert "idle 40 W" in line
    assert "removed" in run("--forget").output
    assert "there is none" in run("--forget").output
    assert modelled_meter().method != "modelled:calibrated"
    assert "not calibrated" in doctor.calibration_lines(machine, cpu)[0]


def test_a_calibration_that_cannot_be_used_is_said_by_the_doctor(machine: Path) -> None:
    machine.parent.mkdir()
    machine.write_text("{")
    (line,) = doctor.calibration_lines(machine, read_cpu_info())
    assert line.startswith("the calibration is not used: ")


def test_nonsense_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, machine: Path, tmp_path: Path
) -> None:
    run("--meter-watts", str(tmp_path / "plug.csv"))
    before = machine.read_text()
    monkeypatch.setattr(Course, "dynamic_w", -6.0)
    result = run("--meter-watts", str(tmp_path / "plug.csv"))
    assert isinstance(result.exception, FitError)
    assert machine.read_text() == before


def test_a_gpu_with_a_meter_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, machine: Path, tmp_path: Path
) -> None:
    nvml = Rung("nvml", ReplayMeter([Reading(0.0)], method="measured:nvml-energy"), "works")
    monkeypatch.setattr(calibrate, "ladder", lambda domain, scope: [nvml])
    result = run("--meter-watts", str(tmp_path / "plug.csv"))
    assert "counted twice" in str(result.exception)
    assert not machine.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give either --meter-watts or --forget"),
        (["--meter-watts", "x", "--forget"], "give either"),
        (["--meter-watts", "x", "--seconds", "3"], "--seconds must be at least 4"),
        (["--meter-watts", "x", "--wait-s", "-1"], "--wait-s must not be negative"),
        (["--meter-watts", "x", "--ca-file", "y"], "--ca-file goes with an https address"),
        (["--meter-watts", "ftp://x"], "only http:// and https:// are asked"),
    ],
)
def test_mistakes_are_told(arguments: list[str], why: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, GreenllmError)
    assert why in str(result.exception)


def test_an_address_is_asked_and_a_file_is_read(tmp_path: Path) -> None:
    assert isinstance(calibrate.open_wall("https://plug/rpc", None), UrlWall)
    assert isinstance(calibrate.open_wall(str(tmp_path), None), FileWall)
    with pytest.raises(ConfigError):
        calibrate.open_wall("plug.csv", tmp_path)
