"""Watts of this machine as a wall meter saw them, kept in a file between runs.

Contract: a calibration is valid for the processor and the number of hardware threads it was made
with. `read_calibration` returns None where there is no file, and refuses one that is garbled, of
another schema or of another machine. Files are written whole or not at all.

Not covered: two machines with the same processor and one home folder; a machine whose disks, fans
or power supply were changed since.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from greenllm.core import GreenllmError
from greenllm.energy.hardware import CpuInfo, VcpuPower

METHOD = "modelled:calibrated"
LARGEST_UNCERTAINTY = 0.5
_SCHEMA = 1
_AGAIN = "run `greenllm calibrate` again"


class CalibrationError(GreenllmError):
    """A calibration cannot be used or written; the message says why."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What this machine draws at the wall.

    Attributes:
        idle_w: Power of the whole machine with nothing running. [W]
        dynamic_w: Power that each busy hardware thread adds. [W]
        uncertainty: Relative half-width of the fit's 90 % interval.
        at_s: When it was made. [Unix s]
        cpu: The processor's name.
        num_vcpus: Its hardware threads.
        num_samples: How many samples of the wall meter it rests on.
        source: The wall meter.
    """

    idle_w: float
    dynamic_w: float
    uncertainty: float
    at_s: float
    cpu: str
    num_vcpus: int
    num_samples: int
    source: str

    @property
    def power(self) -> VcpuPower:
        """The same per hardware thread."""
        idle_w = self.idle_w / self.num_vcpus
        return VcpuPower(
            family="this machine",
            min_w=idle_w,
            max_w=idle_w + self.dynamic_w,
            relative_uncertainty=self.uncertainty,
            source=self.source,
            is_generic=False,
        )


def cpu_name(cpu: CpuInfo) -> str:
    """The marketing name, or the numbers of a processor that has none."""
    return cpu.model_name or f"{cpu.vendor} {cpu.cpu_family} {cpu.model}"


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration in place of the last one.

    Raises:
        CalibrationError: the file cannot be written.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    text = json.dumps({"schema": _SCHEMA, **asdict(calibration)}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def read_calibration(path: Path, cpu: CpuInfo) -> Calibration | None:
    """The calibration of this machine; None where none was made.

    Raises:
        CalibrationError: there is a file that cannot be used here.
    """
    try:
        found = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(f"{path} is garbled ({error}): {_AGAIN}") from error
    if (found.cpu, found.num_vcpus) != (cpu_name(cpu), cpu.num_vcpus):
        raise CalibrationError(
            f"{path} is of another machine ({found.cpu}, {found.num_vcpus} hardware threads):"
            f" {_AGAIN}"
        )
    return found


def forget_calibration(path: Path) -> bool:
    """Remove the file; returns whether there was one.

    Raises:
        CalibrationError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CalibrationError(f"{path} cannot be removed: {error}") from error
    return True


def _parse(text: str) -> Calibration:
    data: dict[str, Any] = json.loads(text)
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']} instead of {_SCHEMA}")
    found = Calibration(**{spec.name: data[spec.name] for spec in fields(Calibration)})
    figures = (found.idle_w, found.dynamic_w, found.uncertainty, found.at_s)
    if not all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures):
        raise ValueError("a figure is no number")
    if not (isinstance(found.cpu, str) and isinstance(found.source, str)):
        raise ValueError("a name is no text")
    if type(found.num_vcpus) is not int or found.num_vcpus < 1:
        raise ValueError("the hardware threads are no number")
    if found.idle_w < 0 or found.dynamic_w <= 0 or not 0 < found.uncertainty <= LARGEST_UNCERTAINTY:
        raise ValueError("a figure is out of its range")
    return found
