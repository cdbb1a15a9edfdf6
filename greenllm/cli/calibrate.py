"""`greenllm calibrate`: what this machine draws, by a meter at the wall.

Contract: the machine is loaded in stages while the wall meter is read; the fit is kept for the
modelled meter, or refused and nothing is changed. Where a GPU is metered by itself it is refused
too: the wall meter has the GPU in it, and together its joules would be counted twice.

Not covered: a machine that others use meanwhile in ways that the processor does not show.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from greenllm.config import ConfigError, Options, option
from greenllm.energy.calibration.course import Course, plan
from greenllm.energy.calibration.fit import Fit, fit_power
from greenllm.energy.calibration.wall import FileWall, WallMeter
from greenllm.energy.calibration.wall_url import UrlWall
from greenllm.energy.hardware import CpuInfo, read_cpu_info
from greenllm.energy.meters.calibrated import (
    METHOD,
    Calibration,
    cpu_name,
    forget_calibration,
    write_calibration,
)
from greenllm.energy.meters.choose import climb, ladder
from greenllm.energy.meters.limits import allowed_threads
from greenllm.energy.meters.scope import Scope
from greenllm.figures import make_console, moment, number
from greenllm.places import calibration_path

_LEAST_SECONDS = 4.0
_IN_IT = "everything behind the wall meter is in these watts: power supply, fans, disks, memory"


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(Options):
    """Which wall meter, and for how long."""

    meter_watts: str | None = option(
        None,
        "The wall meter: an http(s) address that answers with watts (Redfish, Shelly, Tasmota, Home"
        " Assistant, a number), or a file that a logger writes: timestamp,watts. Credentials come"
        " from WALL_METER_TOKEN, or WALL_METER_USER and WALL_METER_PASSWORD.",
    )
    seconds: float = option(
        30.0, "For each stage: idle, one busy hardware thread, half of them, all."
    )
    wait_s: float = option(0.0, "Longest wait for rows that a logger writes late.")
    ca_file: Path | None = option(None, "Certificates to trust, for https.")
    forget: bool = option(False, "Remove the calibration; the processor's family counts again.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget == (self.meter_watts is not None):
            raise ConfigError("give either --meter-watts or --forget", "meter_watts")
        self.require(
            self.seconds >= _LEAST_SECONDS, "seconds", f"must be at least {_LEAST_SECONDS:g}"
        )
        self.require(self.wait_s >= 0, "wait_s", "must not be negative")


def calibrate(options: CalibrateOptions) -> None:
    """Calibrate, or forget.

    Raises:
        GreenllmError: the wall meter does not answer, or the fit is refused.
    """
    console, path, cpu = make_console(), calibration_path(), read_cpu_info()
    if options.meter_watts is None:
        gone = "removed" if forget_calibration(path) else "there is none"
        console.print(f"calibration {path}: {gone}", soft_wrap=True)
        return
    scope = Scope()
    require_no_gpu(scope)
    wall = open_wall(options.meter_watts, options.ca_file)
    fit = measure(console, wall, scope, cpu, options)
    made = Calibration(
        fit.idle_w,
        fit.dynamic_w,
        fit.uncertainty,
        time.time(),
        cpu_name(cpu),
        cpu.num_vcpus,
        fit.num_samples,
        wall.name,
    )
    write_calibration(path, made)
    for line in (described(made), _IN_IT, f"kept in {path}; the modelled meter is {METHOD} now"):
        console.print(line, soft_wrap=True)


def open_wall(name: str, ca_file: Path | None) -> WallMeter:
    """The meter at an address, or the file of a logger.

    Raises:
        GreenllmError: it is no address that is asked.
    """
    if "://" in name:
        return UrlWall(name, environment=os.environ, ca_file=ca_file)
    if ca_file is not None:
        raise ConfigError("--ca-file goes with an https address", "ca_file")
    return FileWall(Path(name))


def require_no_gpu(scope: Scope) -> None:
    """Refuse a machine whose GPU has a meter of its own.

    Raises:
        ConfigError: it has.
    """
    for rung in climb(ladder("gpu", scope)):
        if rung.meter is not None:
            raise ConfigError(
                f"a GPU here is metered by itself ({rung.meter.method}) and is in the wall meter's"
                " watts too: its joules would be counted twice",
                "meter_watts",
            )


def measure(
    console: Console, wall: WallMeter, scope: Scope, cpu: CpuInfo, options: CalibrateOptions
) -> Fit:
    """Load the machine in stages, tell each, and fit.

    Raises:
        GreenllmError: the wall meter does not answer, or the fit is refused.
    """
    sample = wall.poll(time.time())
    watts = None if sample is None else sample.watts
    console.print(f"wall meter {wall.name}: {number(watts)} W", soft_wrap=True)
    stages = plan(allowed_threads(cpu.num_vcpus, scope.proc, scope.sys), options.seconds)
    course = Course(wall, scope.clock)
    for count, stage in enumerate(course.run(stages), 1):
        so_far = f" (wall meter: {number(course.last_w)} W)" if count > 1 else ""
        console.print(f"stage {count} of {len(stages)}: {stage}{so_far}")
    return fit_power(course.samples(options.wait_s))


def described(made: Calibration) -> str:
    """A calibration in a line."""
    return (
        f"calibrated {moment(made.at_s)}: idle {number(made.idle_w)} W,"
        f" {number(made.dynamic_w)} W per busy hardware thread, ± {made.uncertainty:.0%} (90 %,"
        f" {made.num_samples} samples of {made.source})"
    )
