"""The meters by their names, best first in each domain.

Contract: a new meter is one file beside this one and one row here; options, help, `open_meter` and
`greenllm doctor` read the table. This module imports nothing, so that options can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Domain = Literal["gpu", "cpu"]
DOMAINS: tuple[Domain, ...] = ("gpu", "cpu")
AUTO = "auto"
REPLAY = "replay:"


@dataclass(frozen=True, slots=True)
class MeterEntry:
    """A meter's name, what it measures, and the function that makes one for a `Scope`.

    One that is not `in_auto` is tried only when it is asked for by its name.
    """

    name: str
    domain: Domain
    maker: str
    in_auto: bool = True


METERS = (
    MeterEntry("nvml", "gpu", "greenllm.energy.meters.nvml:nvml_meter"),
    MeterEntry("nvml-power", "gpu", "greenllm.energy.meters.nvml:nvml_power_meter"),
    MeterEntry("rapl", "cpu", "greenllm.energy.meters.counters:rapl_meter"),
    MeterEntry("hwmon", "cpu", "greenllm.energy.meters.counters:hwmon_meter"),
    MeterEntry("zeus-gpu", "gpu", "greenllm.energy.meters.zeus:zeus_gpu_meter", in_auto=False),
    MeterEntry("zeus-soc", "cpu", "greenllm.energy.meters.zeus:zeus_soc_meter", in_auto=False),
    MeterEntry("modelled", "cpu", "greenllm.energy.meters.modelled:modelled_meter"),
)
METER_NAMES = ", ".join((AUTO, *(entry.name for entry in METERS))) + f" or {REPLAY}FILE"


def why_unknown(name: str) -> str | None:
    """What is wrong with a meter's name, if anything."""
    known = (AUTO, *(entry.name for entry in METERS))
    if name in known or name.startswith(REPLAY):
        return None
    return f"no meter is called {name!r}: {METER_NAMES}"
