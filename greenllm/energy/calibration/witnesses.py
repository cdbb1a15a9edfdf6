"""Several who count the same load side by side: meters, CodeCarbon and Zeus.

Contract: CodeCarbon and Zeus are used where they are installed, are imported only here and only
when they begin, and use no network. Who fails says why and does not disturb the others. A domain
that somebody does not know is missing, and never 0.

Not covered: which of them is right; CodeCarbon's memory is a model by the installed gigabytes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.energy.units import J_PER_KWH

_WINDOW = "greenllm"


@dataclass(frozen=True, slots=True)
class Counted:
    """Joules of a domain, and the seconds that they are of."""

    joules: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Statement:
    """What one of them counted, by domain, and how; where nothing, `how` says why."""

    name: str
    how: str
    counted: Mapping[str, Counted] = field(default_factory=dict)


class Witness(Protocol):
    """Counts from `begin` to `end`; all may raise whatever a foreign library raises."""

    @property
    def name(self) -> str:
        """What people call it."""

    def prepare(self) -> None:
        """Do what takes long, so that all can begin together."""

    def begin(self) -> None:
        """Begin to count."""

    def end(self) -> Statement:
        """Stop, and tell."""


class MeterWitness:
    """One of this project's meters."""

    def __init__(self, name: str, meter: Meter) -> None:
        self.name = name
        self._meter = meter
        self._first: Reading | None = None

    def prepare(self) -> None:
        """It is there already."""

    def begin(self) -> None:
        """Read."""
        self._first = self._meter.read()

    def end(self) -> Statement:
        """Read again."""
        assert self._first is not None
        first, last = self._first, self._meter.read()
        counted = {
            domain: Counted(last.joules[domain] - joules, _seconds(domain, first, last))
            for domain, joules in first.joules.items()
            if domain in last.joules
        }
        return Statement(self.name, self._meter.method, counted)


def _seconds(domain: str, first: Reading, last: Reading) -> float:
    began_s = first.as_of_s.get(domain, first.at_s)
    return last.as_of_s.get(domain, last.at_s) - began_s


class CodeCarbonWitness:
    """CodeCarbon's tracker of a task; `load_library` imports the package."""

    name = "CodeCarbon"

    def __init__(self, load_library: Callable[[str], Any] = import_module) -> None:
        self._load_library = load_library
        self._tracker: Any = None

    def prepare(self) -> None:
        """Make a tracker; the country is needed for grams, which are not used."""
        with _quietly():
            self._tracker = self._load_library("codecarbon").OfflineEmissionsTracker(
                country_iso_code="FRA",
                measure_power_secs=1,
                output_methods=[],
                log_level="error",
                allow_multiple_runs=True,
                tracking_mode="machine",
            )

    def begin(self) -> None:
        """Begin a task."""
        with _quietly():
            self._tracker.start_task(_WINDOW)

    def end(self) -> Statement:
        """End the task."""
        with _quietly():
            found = self._tracker.stop_task(_WINDOW)
            self._tracker.stop()
        kwh = {"cpu": found.cpu_energy, "gpu": found.gpu_energy, "dram": found.ram_energy}
        joules = {domain: value * J_PER_KWH for domain, value in kwh.items() if value}
        return _statement(self.name, f"version {found.codecarbon_version}", joules, found.duration)


class ZeusWitness:
    """Zeus' monitor; `load_library` imports the package."""

    name = "Zeus"

    def __init__(self, load_library: Callable[[str], Any] = import_module) -> None:
        self._load_library = load_library
        self._monitor: Any = None

    def prepare(self) -> None:
        """Make a monitor."""
        with _quietly():
            self._monitor = self._load_library("zeus.monitor").ZeusMonitor()

    def begin(self) -> None:
        """Begin a window."""
        with _quietly():
            self._monitor.begin_window(_WINDOW, sync_execution=False)

    def end(self) -> Statement:
        """End the window."""
        with _quietly():
            found = self._monitor.end_window(_WINDOW, sync_execution=False)
        by_device = {"gpu": found.gpu_energy, "cpu": found.cpu_energy, "dram": found.dram_energy}
        joules = {domain: sum(each.values()) for domain, each in by_device.items() if each}
        return _statement(self.name, "ZeusMonitor", joules, found.time)


def _statement(name: str, how: str, joules: Mapping[str, float], seconds: float) -> Statement:
    if not joules:
        how = f"{how}: finds nothing here that it can count"
    counted = {domain: Counted(value, seconds) for domain, value in joules.items()}
    return Statement(name, how, counted)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Libraries of sensors print and warn when a sensor is missing."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def hear(witnesses: Sequence[Witness], work: Callable[[], None]) -> list[Statement]:
    """What each counts while `work` works; the last to begin is the first to end."""
    told: dict[str, Statement] = {}

    def try_all(some: Iterable[Witness], act: Callable[[Witness], Statement | None]) -> None:
        for witness in some:
            if witness.name not in told:
                try:
                    found = act(witness)
                except Exception as error:
                    found = _failure(witness, error)
                if found is not None:
                    told[witness.name] = found

    try_all(witnesses, lambda witness: witness.prepare())
    try_all(witnesses, lambda witness: witness.begin())
    work()
    try_all(reversed(witnesses), lambda witness: witness.end())
    return [told[witness.name] for witness in witnesses]


def _failure(witness: Witness, error: Exception) -> Statement:
    if isinstance(error, ModuleNotFoundError):
        return Statement(witness.name, f"not installed: {error}")
    return Statement(witness.name, " ".join(f"{type(error).__name__}: {error}".split()))


def ratios(told: Sequence[Statement], chosen: Sequence[str]) -> dict[tuple[str, str], float]:
    """Mean power relative to that of the chosen meters, by name and domain, where both know it."""
    reference: dict[str, float] = {}
    for one in told:
        if one.name in chosen:
            reference |= {domain: _watts(found) for domain, found in one.counted.items()}
    return {
        (one.name, domain): _watts(found) / reference[domain]
        for one in told
        for domain, found in one.counted.items()
        if reference.get(domain)
    }


def _watts(found: Counted) -> float:
    return found.joules / found.seconds if found.seconds > 0 else 0.0
