"""Idle and dynamic watts from samples of power and busy hardware threads: P = idle + dynamic * n.

Least squares. The interval is that of one more sample (Student's t, 90 %), at idle or at the
highest load, whichever is wider relative to its watts; a wall meter's own error of 3 % is added as
the root of the sum of squares. It is wider than the error of a long mean on purpose: that a line
does not describe the machine, and that one kind of work draws more than another, is in it too.

Not covered: kinds of work that were not sampled; meters that are further off than 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from greenllm.core import GreenllmError
from greenllm.energy.meters.calibrated import LARGEST_UNCERTAINTY

WALL_METER_ERROR = 0.03
LEAST_SAMPLES = 8
_LEAST_RANGE_CPUS = 0.5
_NORMAL_90 = 1.6449


class FitError(GreenllmError):
    """The samples do not tell what the machine draws; the message says why."""


@dataclass(frozen=True, slots=True)
class PowerSample:
    """Mean power while so many hardware threads were busy on average."""

    busy_cpus: float
    watts: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Watts at idle, watts per busy hardware thread, and the relative 90 % interval of both."""

    idle_w: float
    dynamic_w: float
    uncertainty: float
    num_samples: int


def fit_power(samples: Sequence[PowerSample]) -> Fit:
    """Fit the line.

    Raises:
        FitError: there are too few samples, the load did not vary, or no machine can be like that.
    """
    num = len(samples)
    if num < LEAST_SAMPLES:
        raise FitError(f"{num} samples of the wall meter are too few, {LEAST_SAMPLES} are needed")
    loads = [sample.busy_cpus for sample in samples]
    if max(loads) - min(loads) < _LEAST_RANGE_CPUS:
        raise FitError(
            f"the load hardly varied: {min(loads):.2g} to {max(loads):.2g} busy hardware threads"
        )
    mean_load, mean_w = sum(loads) / num, sum(sample.watts for sample in samples) / num
    spread = sum((load - mean_load) ** 2 for load in loads)
    dynamic_w = sum((s.busy_cpus - mean_load) * (s.watts - mean_w) for s in samples) / spread
    idle_w = mean_w - dynamic_w * mean_load
    if dynamic_w <= 0 or idle_w <= 0:
        raise FitError(
            f"idle {idle_w:.3g} W and {dynamic_w:.3g} W per busy hardware thread: this cannot be."
            " Does the wall meter see this machine, and nothing that changes beside it?"
        )
    errors_w = (s.watts - idle_w - dynamic_w * s.busy_cpus for s in samples)
    error_w = math.sqrt(sum(error * error for error in errors_w) / (num - 2))

    def relative(load: float) -> float:
        width = math.sqrt(1 + 1 / num + (load - mean_load) ** 2 / spread)
        return _student_90(num - 2) * error_w * width / (idle_w + dynamic_w * load)

    uncertainty = math.hypot(max(relative(0.0), relative(max(loads))), WALL_METER_ERROR)
    if uncertainty > LARGEST_UNCERTAINTY:
        raise FitError(
            f"± {uncertainty:.0%} is too wide for a calibration: take longer (--seconds), and let"
            " nothing else run"
        )
    return Fit(idle_w, dynamic_w, uncertainty, num)


def _student_90(freedom: int) -> float:
    """Student's t that 90 % of the values do not exceed on either side, for 6 and more degrees."""
    z = _NORMAL_90
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
