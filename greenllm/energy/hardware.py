"""What the machine is, and what its kind is known to draw.

Contract: `read_cpu_info` reports what `/proc/cpuinfo` says and None for what it does not;
`vcpu_power` gives watts per virtual CPU (one hardware thread) at idle and at full load with a
90 % relative uncertainty; an unknown CPU gets the generic row and says so. `accelerator` gives
rated figures by name; a figure nobody published is None.

Source: `data/vcpu_watts.csv` holds means over the SPECpower_ssj2008 servers of each CPU family,
watts of the whole server divided by its hardware threads. The uncertainty is half the distance
between the 5th and 95th percentile of those servers relative to their mean, taken at idle and
at full load, the larger of the two. Listings whose thread count is twice what the CPU has were
left out, and so were desktop parts sold under a server name. Graviton rows are copied from
another family, as their source does, and carry the generic uncertainty. A row with a
`name_pattern` is for processors whose marketing name it finds: Bergamo and Siena share a CPUID
model, and desktops and laptops have those of servers. Nobody publishes watts of whole desktops
and laptops; their rows say what stands in, are wide, and count as not recognised.
`data/accelerators.csv` holds rated powers from data sheets, Green Algorithms (CC BY 4.0) and
CodeCarbon (MIT).

Not covered: loads heavier than server-side Java (wide vector and matrix units) and GPUs in the
server. Which part of a machine a process may use is told by `meters.limits`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from greenllm.energy.tables import closest, optional_float, read_table

GENERIC = "generic"


class UnknownAcceleratorError(ValueError):
    """The accelerator is not in the table."""


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """A processor as the operating system names it.

    Args:
        vendor: CPUID vendor, the Arm implementer code, or "unknown".
        cpu_family: CPUID display family, or the Arm architecture version.
        model: CPUID display model, or the Arm part number.
        model_name: marketing name, empty where the system gives none.
        num_vcpus: hardware threads the system shows.
    """

    vendor: str
    cpu_family: int | None
    model: int | None
    model_name: str
    num_vcpus: int


@dataclass(frozen=True, slots=True)
class VcpuPower:
    """Watts per virtual CPU.

    Args:
        family: name of the CPU family.
        min_w: watts at idle.
        max_w: watts at full load.
        relative_uncertainty: 90 % half-width relative to the watts, at any utilisation.
        source: where the figures come from.
        is_generic: whether no server of the CPU's family was measured.
    """

    family: str
    min_w: float
    max_w: float
    relative_uncertainty: float
    source: str
    is_generic: bool

    def power_w(self, utilisation: float) -> float:
        """Watts at a utilisation between 0 and 1, linear in it.

        Raises:
            ValueError: `utilisation` is outside 0 to 1.
        """
        if not 0 <= utilisation <= 1:
            raise ValueError(f"utilisation must be from 0 to 1, not {utilisation}")
        return self.min_w + utilisation * (self.max_w - self.min_w)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Rated figures of a GPU or of a CPU package.

    Args:
        name: vendor and product.
        tdp_w: rated power.
        idle_w: idle power, None where unknown.
        embodied_kg: manufacture, None where unknown.
        source: where the figures come from.
    """

    name: str
    tdp_w: float
    idle_w: float | None
    embodied_kg: float | None
    source: str


def read_cpu_info(path: Path = Path("/proc/cpuinfo")) -> CpuInfo:
    """The processor that `path` describes, or an unknown one where the file is absent."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields, processors = _parse(text)
    return CpuInfo(
        vendor=fields.get("vendor_id") or fields.get("cpu implementer") or "unknown",
        cpu_family=_number(fields.get("cpu family") or fields.get("cpu architecture")),
        model=_number(fields.get("model") or fields.get("cpu part")),
        model_name=fields.get("model name", ""),
        num_vcpus=processors or os.cpu_count() or 1,
    )


def vcpu_power(cpu: CpuInfo) -> VcpuPower:
    """Watts per virtual CPU of the processor's family, or the generic figures."""
    rows = read_table("vcpu_watts.csv")
    row = next((row for row in rows if _matches(row, cpu)), None)
    if row is None:
        row = next(row for row in rows if row["family"] == GENERIC)
    return _vcpu_power(row)


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name, in any case.

    Raises:
        UnknownAcceleratorError: no such name; the message suggests the closest ones.
    """
    known = {item.name: item for item in accelerators()}
    by_folded = {item.name.casefold(): item for item in known.values()}
    found = by_folded.get(name.strip().casefold())
    if found is None:
        raise UnknownAcceleratorError(f"unknown accelerator {name!r}: {closest(name, known)}")
    return found


def accelerators() -> tuple[Accelerator, ...]:
    """All accelerators in the table, in file order."""
    return tuple(_accelerator(row) for row in read_table("accelerators.csv"))


def _accelerator(row: Mapping[str, str]) -> Accelerator:
    return Accelerator(
        name=row["name"],
        tdp_w=float(row["tdp_w"]),
        idle_w=optional_float(row["idle_w"]),
        embodied_kg=optional_float(row["embodied_kg"]),
        source=row["source"],
    )


def _vcpu_power(row: Mapping[str, str]) -> VcpuPower:
    spreads = ("relative_uncertainty_90", "idle_relative_uncertainty_90")
    return VcpuPower(
        family=row["family"],
        min_w=float(row["min_w"]),
        max_w=float(row["max_w"]),
        relative_uncertainty=max(float(row[key]) for key in spreads),
        source=row["source"],
        is_generic=not row["vendor"],
    )


def _matches(row: Mapping[str, str], cpu: CpuInfo) -> bool:
    if row["name_pattern"] and not re.search(row["name_pattern"], cpu.model_name):
        return False
    if not row["vendor"]:
        return row["family"] != GENERIC
    if cpu.cpu_family is None or cpu.model is None:
        return False
    same_family = row["vendor"] == cpu.vendor and int(row["cpu_family"]) == cpu.cpu_family
    return same_family and int(row["model_min"]) <= cpu.model <= int(row["model_max"])


def _parse(text: str) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    processors = 0
    for line in text.splitlines():
        key, separator, value = (part.strip() for part in line.partition(":"))
        if separator:
            # Arm writes "Processor" once as a title and "processor" once per thread.
            processors += key == "processor"
            fields.setdefault(key.casefold(), value)
    return fields, processors


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None
