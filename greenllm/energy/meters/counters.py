"""Energy counters that the kernel shows as files: RAPL (powercap) and hwmon.

Contract: joules since the meter was made, monotone. A RAPL counter that wraps is continued by its
published range; one that falls back without a range, or by more than a wrap explains, is taken as
reset and continued from there; one that only slips back a little adds nothing. Zones that mirror
one another (MSR and MMIO views of one package) are counted once; `psys` and sub-zones of a package
other than dram are left out, being contained in or containing the rest.

Not covered: AMD parts whose dies each mirror the whole socket (compare with a wall meter once).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Reading, SensorError
from greenllm.energy.meters.scope import Scope

_J_PER_UJ = 1e-6
_HWMON_ENERGY_DRIVERS = frozenset({"amd_energy", "zenergy"})
# The kernel lists all zones side by side, as links. In a container the folder that they lead to
# may be mounted in their place: there the zones of a package lie inside it.
_RAPL_ZONES = ("intel-rapl*:*", "intel-rapl*:*/intel-rapl*:*:*")


@dataclass(frozen=True, slots=True)
class CounterFile:
    """One file with microjoules; `range_uj` is where it wraps, None when it does not say."""

    path: Path
    domain: Literal["cpu", "dram"]
    range_uj: int | None = None

    def read_uj(self) -> int:
        """Read the raw counter.

        Raises:
            SensorError: it cannot be read.
        """
        try:
            return int(self.path.read_text())
        except PermissionError as error:
            hint = "run `greenllm doctor` for how to read it without root"
            raise SensorError(f"{self.path}: permission denied; {hint}") from error
        except (OSError, ValueError) as error:
            raise SensorError(f"{self.path}: {error}") from error


def find_rapl(sys: Path = Path("/sys")) -> list[CounterFile]:
    """Find package and dram zones, each physical counter once."""
    found: dict[str, CounterFile] = {}
    folder = sys / "class/powercap"
    for zone in (zone for zones in _RAPL_ZONES for zone in sorted(folder.glob(zones))):
        name = _text(zone / "name")
        kind = name.partition("-")[0]
        if kind not in ("package", "dram"):
            continue
        identity = name if kind == "package" else f"{zone.name.rpartition(':')[0][-2:]}{name}"
        wraps = _text(zone / "max_energy_range_uj")
        counter = CounterFile(
            zone / "energy_uj",
            "dram" if kind == "dram" else "cpu",
            int(wraps) if wraps.isdigit() else None,
        )
        found.setdefault(identity, counter)
    return list(found.values())


def find_hwmon(sys: Path = Path("/sys")) -> list[CounterFile]:
    """Find socket counters of energy drivers; per-core counters are part of the sockets."""
    return list(_hwmon_sockets(sys))


def _hwmon_sockets(sys: Path) -> Iterator[CounterFile]:
    for chip in sorted((sys / "class/hwmon").glob("hwmon*")):
        if _text(chip / "name") not in _HWMON_ENERGY_DRIVERS:
            continue
        for path in sorted(chip.glob("energy*_input")):
            label = _text(chip / path.name.replace("_input", "_label")).lower()
            if "socket" in label:
                yield CounterFile(path, "cpu")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class FileCounterMeter:
    """Sums counter files per domain and follows them over wraps and resets."""

    measured = True
    uncertainty = 0.05
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = None

    def __init__(
        self,
        counters: list[CounterFile],
        *,
        method: str,
        period_s: float = 0.001,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not counters:
            raise SensorError(f"{method}: no counters found")
        self.method = method
        self.period_s = period_s
        self._counters = counters
        self._cpu = cpu or CpuClock()
        self._clock = clock
        self._last_uj = [counter.read_uj() for counter in counters]
        self._sums_uj = [0] * len(counters)

    def read(self) -> Reading:
        """Read all files, then add: a failing file leaves every sum as it was."""
        values = [counter.read_uj() for counter in self._counters]
        joules: dict[str, float] = {}
        for i, (counter, value) in enumerate(zip(self._counters, values, strict=True)):
            self._sums_uj[i] += self._delta_uj(counter, self._last_uj[i], value)
            self._last_uj[i] = value
            so_far = joules.get(counter.domain, 0.0)
            joules[counter.domain] = so_far + self._sums_uj[i] * _J_PER_UJ
        times = self._cpu.read()
        return Reading(self._clock(), joules, times.own_s, times.machine_s, times.train_s)

    def _delta_uj(self, counter: CounterFile, before: int, now: int) -> int:
        if now >= before:
            return now - before
        wrapped = (counter.range_uj or 0) - before + now
        if counter.range_uj is not None and 0 <= wrapped < counter.range_uj // 2:
            return wrapped
        return now if now <= before // 2 else 0


def rapl_meter(scope: Scope) -> FileCounterMeter:
    """The processors' and the memory's counters of powercap.

    Raises:
        SensorError: there is none, or it cannot be read.
    """
    return FileCounterMeter(find_rapl(scope.sys), method="measured:rapl", cpu=scope.clock)


def hwmon_meter(scope: Scope) -> FileCounterMeter:
    """The processors' counters of hwmon.

    Raises:
        SensorError: there is none, or it cannot be read.
    """
    return FileCounterMeter(find_hwmon(scope.sys), method="measured:hwmon", cpu=scope.clock)
