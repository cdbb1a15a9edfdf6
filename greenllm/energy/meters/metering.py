"""A meter by its name, for commands that count what they spend themselves."""

from __future__ import annotations

from greenllm.config import ConfigError
from greenllm.energy.meters.choose import choose_meter, cpu_rungs, gpu_rungs
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Meter, Reading, SensorError


def meter_of_tree(name: str, pid: int) -> tuple[Meter, Reading]:
    """A meter to which everything below a process is its own, and its first reading.

    Raises:
        ConfigError: it is not there, or does not read.
    """
    clock = CpuClock(tree_of=pid)
    try:
        meter = choose_meter(name, gpu=gpu_rungs, cpu=lambda: cpu_rungs(clock=clock))
        first = meter.read()
    except SensorError as error:
        raise ConfigError(f"--meter {name}: {error}") from error
    return meter, first
