"""Energy counters that the kernel shows as files: RAPL (powercap) and hwmon.

Contract: joules per domain since the meter was made, followed over wraps, slips and resets (see
`track`). Zones that mirror one another (MSR and MMIO views of one package) are counted once; `psys`
and sub-zones of a package other than dram are left out, being contained in or containing the rest.

The largest power of a zone is the largest limit that powercap gives for it, and at most, or where
there is none, 1,000 W for a socket and 300 W for its memory.

Of dies that each count their whole socket one is taken (see `mirrors`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from greenllm.energy.meters.combined import CombinedMeter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.mirrors import NOISE_UJ, independent
from greenllm.energy.meters.protocol import SensorError
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.track import Tracks
from greenllm.energy.meters.tracked import TrackedMeter

log = logging.getLogger(__name__)

FileDomain = Literal["cpu", "dram"]
_DOMAINS: tuple[FileDomain, ...] = ("cpu", "dram")
_J_PER_UJ = 1e-6
_W_PER_UW = 1e-6
_LARGEST_W: Mapping[FileDomain, float] = {"cpu": 1000.0, "dram": 300.0}
_LIMITS = ("constraint_*_max_power_uw", "constraint_*_power_limit_uw")
_LOOK_EVERY_S = 1.0
_SAMPLES, _BETWEEN_SAMPLES_S = 3, 0.15
_HWMON_ENERGY_DRIVERS = frozenset({"amd_energy", "zenergy"})
# The kernel lists all zones side by side, as links. In a container the folder that they lead to
# may be mounted in their place: there the zones of a package lie inside it.
_RAPL_ZONES = ("intel-rapl*:*", "intel-rapl*:*/intel-rapl*:*:*")


@dataclass(frozen=True, slots=True)
class CounterFile:
    """One file with microjoules; `range_uj` is where it wraps, None when it does not say."""

    path: Path
    domain: FileDomain
    range_uj: int | None = None
    name: str = "counter"
    limit_w: float | None = None

    @property
    def largest_w(self) -> float:
        """The largest power that the file's hardware may draw."""
        default_w = _LARGEST_W[self.domain]
        return min(self.limit_w, default_w) if self.limit_w else default_w

    @property
    def wraps_at_j(self) -> float | None:
        """The range in joules."""
        return None if self.range_uj is None else self.range_uj * _J_PER_UJ

    def read_j(self) -> float:
        """The counter in joules.

        Raises:
            SensorError: it cannot be read.
        """
        return self.read_uj() * _J_PER_UJ

    def read_uj(self) -> int:
        """Read the counter.

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
        socket = zone.name.rpartition(":")[0][-2:]
        identity = name if kind == "package" else f"{socket}{name}"
        counter = CounterFile(
            zone / "energy_uj",
            "dram" if kind == "dram" else "cpu",
            _number(zone / "max_energy_range_uj"),
            name if kind == "package" else f"{name}{socket}",
            _limit_w(zone),
        )
        found.setdefault(identity, counter)
    return list(found.values())


def _limit_w(zone: Path) -> float | None:
    limits = (_number(path) or 0 for pattern in _LIMITS for path in zone.glob(pattern))
    return max(limits, default=0) * _W_PER_UW or None


def each_once(counters: Sequence[CounterFile], work: Callable[[float], None]) -> list[CounterFile]:
    """Counters without those that show what another one shows.

    `work` works hard for so many seconds; only counters that say the same have to be put to work.

    Raises:
        SensorError: a counter cannot be read.
    """
    ranges_uj = [counter.range_uj for counter in counters]
    samples = [[counter.read_uj() for counter in counters]]
    alike = (abs(one - other) <= NOISE_UJ for one, other in combinations(samples[0], 2))
    if not any(alike):
        return list(counters)
    for _ in range(_SAMPLES):
        work(_BETWEEN_SAMPLES_S)
        samples.append([counter.read_uj() for counter in counters])
    return [counters[place] for place in independent(samples, ranges_uj)]


def find_hwmon(sys: Path = Path("/sys")) -> list[CounterFile]:
    """Find socket counters of energy drivers; per-core counters are part of the sockets."""
    return list(_hwmon_sockets(sys))


def _hwmon_sockets(sys: Path) -> Iterator[CounterFile]:
    for chip in sorted((sys / "class/hwmon").glob("hwmon*")):
        if _text(chip / "name") not in _HWMON_ENERGY_DRIVERS:
            continue
        for path in sorted(chip.glob("energy*_input")):
            label = _text(chip / path.name.replace("_input", "_label"))
            if "socket" in label.lower():
                yield CounterFile(path, "cpu", name=label)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


class FileCounterMeter(TrackedMeter):
    """The counter files of one domain."""

    uncertainty = 0.05

    def __init__(
        self,
        counters: Sequence[CounterFile],
        *,
        method: str,
        period_s: float = 0.001,
        cpu: CpuClock | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float | None = None,
    ) -> None:
        """Begin to follow; with `look_every_s` a thread looks between readings.

        Raises:
            SensorError: there are none, or one of them cannot be read.
        """
        if not counters:
            raise SensorError(f"no {method.rpartition(':')[2]} counters found")
        self.method = method
        self.period_s = period_s
        super().__init__(
            counters[0].domain,
            Tracks(counters, period_s=period_s, clock=clock),
            cpu=cpu,
            clock=clock,
            wait_s=None if look_every_s is None else lambda *_: look_every_s,
        )


def _by_domain(found: Sequence[CounterFile], method: str, scope: Scope) -> CombinedMeter:
    """A part for each domain, so that one that fails leaves the others alone.

    The first has the CPU times; where the machine is shared, each part needs them.
    """
    groups = {domain: [c for c in found if c.domain == domain] for domain in _DOMAINS}
    sockets = each_once(groups["cpu"], scope.work)
    return CombinedMeter(
        [_part(sockets, method, scope.clock), *_memory(groups["dram"], method, scope)]
    )


def _part(group: Sequence[CounterFile], method: str, cpu: CpuClock | None) -> FileCounterMeter:
    return FileCounterMeter(group, method=method, cpu=cpu, look_every_s=_LOOK_EVERY_S)


def _memory(group: Sequence[CounterFile], method: str, scope: Scope) -> list[FileCounterMeter]:
    """The part for memory; none where it cannot be read, for the processors can all the same."""
    try:
        return [_part(group, method, scope.clock if scope.roster else None)] if group else []
    except SensorError as error:
        log.warning("memory is not metered: %s", error)
        return []


def rapl_meter(scope: Scope) -> CombinedMeter:
    """The processors' and the memory's counters of powercap.

    Raises:
        SensorError: there is none, or it cannot be read.
    """
    return _by_domain(find_rapl(scope.sys), "measured:rapl", scope)


def hwmon_meter(scope: Scope) -> CombinedMeter:
    """The processors' counters of hwmon.

    Raises:
        SensorError: there is none, or it cannot be read.
    """
    return _by_domain(find_hwmon(scope.sys), "measured:hwmon", scope)
