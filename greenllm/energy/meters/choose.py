"""Chooses the best meter this machine offers, and can say why.

Per domain the meters of `registry` are tried, best first. One that fails leaves its reason behind;
`greenllm doctor` prints them.

Not covered: host-shared readings inside virtual machines, Redfish, AMD and Intel GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from greenllm.config import ConfigError
from greenllm.energy.meters.protocol import (
    CombinedMeter,
    Meter,
    NullMeter,
    Reading,
    SensorError,
    load_replay,
)
from greenllm.energy.meters.registry import (
    AUTO,
    DOMAINS,
    METERS,
    REPLAY,
    Domain,
    MeterEntry,
    why_unknown,
)
from greenllm.energy.meters.scope import Scope
from greenllm.energy.meters.sharing import SharedMeter
from greenllm.options import MeterOptions


@dataclass(frozen=True, slots=True)
class Rung:
    """One meter that was tried; `meter` is None where it failed, and `reason` says why."""

    name: str
    meter: Meter | None
    reason: str


def open_meter(options: MeterOptions, scope: Scope | None = None) -> tuple[Meter, Reading]:
    """Make the meter that was asked for, and read it once.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    scope = scope or Scope()
    name = options.meter
    domains = DOMAINS if scope.gpus else tuple(domain for domain in DOMAINS if domain != "gpu")
    only = None if name == AUTO else name
    try:
        meter = choose_meter(name, {domain: ladder(domain, scope, only) for domain in domains})
        return meter, meter.read()
    except SensorError as error:
        raise ConfigError(f"--meter {name}: {error}", "meter") from error


def choose_meter(name: str, ladders: Mapping[Domain, Iterable[Rung]]) -> Meter:
    """The meter called `name`; `auto` is the best of each domain together.

    Raises:
        SensorError: a meter asked for by name does not work here.
    """
    if name.startswith(REPLAY):
        return load_replay(Path(name.removeprefix(REPLAY)), clock=time.monotonic)
    if name == AUTO:
        return _together([found for rungs in ladders.values() if (found := _best(rungs))])
    if fault := why_unknown(name):
        raise SensorError(fault)
    for rung in (rung for rungs in ladders.values() for rung in rungs if rung.name == name):
        if rung.meter is None:
            raise SensorError(f"meter {name} does not work here: {rung.reason}")
        return rung.meter
    raise SensorError(f"meter {name} is for devices that are not metered here")


def ladder(domain: Domain, scope: Scope, only: str | None = None) -> Iterator[Rung]:
    """Try the meters of a domain, best first, or only one of them; each when it is asked for."""
    for entry in METERS:
        if entry.domain == domain and only in (None, entry.name):
            yield try_meter(entry.name, partial(_make, entry, scope))


def try_meter(name: str, make: Callable[[], Meter]) -> Rung:
    """Make a meter and read it once."""
    try:
        meter = make()
        meter.read()
    except SensorError as error:
        return Rung(name, None, str(error))
    return Rung(name, meter, "works")


def _make(entry: MeterEntry, scope: Scope) -> Meter:
    module, _, function = entry.maker.partition(":")
    meter: Meter = getattr(import_module(module), function)(scope)
    if scope.roster is None or entry.domain == "gpu":
        return meter
    return SharedMeter(meter, scope.roster)


def _best(rungs: Iterable[Rung]) -> Meter | None:
    return next((rung.meter for rung in rungs if rung.meter is not None), None)


def _together(meters: list[Meter]) -> Meter:
    if not meters:
        return NullMeter(time.monotonic)
    return meters[0] if len(meters) == 1 else CombinedMeter(meters)
