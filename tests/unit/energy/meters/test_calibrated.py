"""The file of a calibration: kept whole, valid for one machine, refused when garbled."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from greenllm.energy.hardware import CpuInfo
from greenllm.energy.meters.calibrated import (
    Calibration,
    CalibrationError,
    cpu_name,
    forget_calibration,
    read_calibration,
    write_calibration,
)

CPU = CpuInfo("AuthenticAMD", 25, 17, "AMD EPYC 9354", 64)
MADE = Calibration(120.0, 3.5, 0.08, 1_790_000_000.0, "AMD EPYC 9354", 64, 96, "http://plug/")


def test_a_calibration_is_kept_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    assert read_calibration(path, CPU) is None
    write_calibration(path, replace(MADE, idle_w=1.0))
    write_calibration(path, MADE)
    assert read_calibration(path, CPU) == MADE
    assert [found.name for found in path.parent.iterdir()] == ["calibration.json"]
    assert (forget_calibration(path), forget_calibration(path)) == (True, False)
    assert read_calibration(path, CPU) is None


def test_it_is_spread_over_the_hardware_threads() -> None:
    power = MADE.power
    assert (power.min_w, power.max_w) == (120 / 64, 120 / 64 + 3.5)
    assert (power.relative_uncertainty, power.is_generic) == (0.08, False)


@pytest.mark.parametrize("other", [replace(CPU, num_vcpus=32), replace(CPU, model_name="Xeon")])
def test_that_of_another_machine_is_refused(tmp_path: Path, other: CpuInfo) -> None:
    write_calibration(tmp_path / "c.json", MADE)
    with pytest.raises(CalibrationError, match="of another machine"):
        read_calibration(tmp_path / "c.json", other)


def test_a_processor_without_a_name_has_its_numbers() -> None:
    assert cpu_name(CpuInfo("0x41", 8, 0xD40, "", 4)) == "0x41 8 3392"


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"idle_w": None},
        {"idle_w": "120"},
        {"idle_w": -1.0},
        {"idle_w": float("nan")},
        {"idle_w": True},
        {"dynamic_w": 0.0},
        {"uncertainty": 0.6},
        {"uncertainty": 0.0},
        {"num_vcpus": 0},
        {"num_vcpus": 64.5},
        {"source": None},
        {"at_s": float("inf")},
    ],
    ids=str,
)
def test_what_is_garbled_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    write_calibration(path, MADE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CalibrationError, match="garbled"):
        read_calibration(path, CPU)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"schema": 1}', "\x00\xff"])
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError, match="garbled"):
        read_calibration(tmp_path / "c.json", CPU)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_calibration(tmp_path / "file" / "c.json", MADE)
