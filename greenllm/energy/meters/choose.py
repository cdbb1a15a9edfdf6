"""Chooses the best meter this machine offers, and can say why.

Per domain the meters of `registry` are tried, best first: each is read, works hard for a moment,
and is read again, so that counters that stand still are not taken. One that fails leaves its reason
behind; `greenllm doctor` prints them. A GPU that computes and cannot be metered is a lost domain.

Not covered: host-shared readings inside virtual machines, Redfish, Intel GPUs; AMD's are metered
only when they are asked for (see `zeus`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from greenllm.config import ConfigError
from greenllm.energy.meters.combined import CombinedMeter, parts_of
from greenllm.energy.meters.heartbeat import Heartbeat
from greenllm.energy.meters.protocol import Meter, NullMeter, Reading, SensorError, load_replay
from greenllm.energy.meters.registry import (
    AUTO,
    DOMAINS,
    METERS,
    REPLAY,
    Domain,
    MeterEntry,
    why_unknown,
)
from greenllm.energy.meters.roster import Roster
from greenllm.energy.meters.scope import Scope, work_hard
from greenllm.energy.meters.sharing import SharedMeter
from greenllm.energy.meters.tracked import TrackedMeter
from greenllm.options import MeterOptions

log = logging.getLogger(__name__)

_LOAD_PERIODS, _LEAST_LOAD_S, _MOST_LOAD_S = 3, 0.05, 0.5
WORKS = "works"


@dataclass(frozen=True, slots=True)
class Rung:
    """One meter that was tried; `meter` is None where it failed, and `reason` says why.

    Where it works, `reason` says what is wrong with it all the same.
    """

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
    domains = tuple(domain for domain in DOMAINS if domain != "gpu" or scope.devices != ())
    only = None if name == AUTO else name
    rungs = {domain: climb(ladder(domain, scope, only)) for domain in domains}
    try:
        meter = choose_meter(name, rungs)
        lost = lost_domains(rungs, scope) if name == AUTO else {}
        for domain, why in lost.items():
            log.warning("joules of %s are lost: %s", domain, why)
        meter = CombinedMeter([meter], lost=lost, paused_s=Heartbeat().paused_s)
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
        return _told(rung)
    raise SensorError(f"meter {name} is for devices that are not metered here")


def lost_domains(ladders: Mapping[Domain, Iterable[Rung]], scope: Scope) -> dict[str, str]:
    """Domains that are used and that no rung can meter: GPUs that CUDA sees."""
    gpu = list(ladders.get("gpu", ()))
    if not gpu or any(rung.meter is not None for rung in gpu) or scope.cuda() == ():
        return {}
    return {"gpu": gpu[0].reason}


def climb(rungs: Iterable[Rung]) -> list[Rung]:
    """Rungs up to the first that works."""
    tried: list[Rung] = []
    for rung in rungs:
        tried.append(rung)
        if rung.meter is not None:
            break
    return tried


def ladder(domain: Domain, scope: Scope, only: str | None = None) -> Iterator[Rung]:
    """Try the meters of a domain, best first, or only one of them; each when it is asked for."""
    roster = None if domain == "gpu" else scope.roster
    for entry in METERS:
        is_asked_for = entry.in_auto if only is None else entry.name == only
        if entry.domain == domain and is_asked_for:
            make = partial(_make, entry, scope)
            yield try_meter(entry.name, make, domain, roster, scope.work)


def try_meter(
    name: str,
    make: Callable[[], Meter],
    domain: str = "cpu",
    roster: Roster | None = None,
    work: Callable[[float], None] = work_hard,
) -> Rung:
    """Make a meter, read it once, and see that what counts the domain moves under load.

    With a roster what it counts is shared with the others there. `work` works hard for as many
    seconds as it is told.
    """
    try:
        meter = make()
        still, gaps = _put_to_work(meter, work)
        whys = [f"stands still under load: {', '.join(names)}" for names in still.values()]
        if any(part.domain == domain for part in still):
            raise SensorError("; ".join(whys))
        moving = [part for part in parts_of(meter) if part not in still]
        if roster is not None:
            moving = [SharedMeter(part, roster) for part in moving]
        if still or roster is not None:
            meter = CombinedMeter(moving)
    except SensorError as error:
        return Rung(name, None, str(error))
    whys += [f"{gap} made a step that is not believed" for gap in sorted(gaps)]
    assumed = [part.assumption for part in moving if isinstance(part, TrackedMeter)]
    doubts = [*whys, *(why for why in assumed if why)]
    return Rung(name, meter, ", but ".join([WORKS, *doubts]))


def _put_to_work(
    meter: Meter, work: Callable[[float], None]
) -> tuple[dict[TrackedMeter, tuple[str, ...]], frozenset[str]]:
    """The parts with counters that stand still under load, with these; domains with gaps."""
    before = meter.read()
    parts = [part for part in parts_of(meter) if isinstance(part, TrackedMeter)]
    if not parts:
        return {}, before.gaps
    work(min(max(_LEAST_LOAD_S, _LOAD_PERIODS * meter.period_s), _MOST_LOAD_S))
    after = meter.read()
    still = {part: part.still_since(before.at_s) for part in parts}
    return {part: names for part, names in still.items() if names}, before.gaps | after.gaps


def _make(entry: MeterEntry, scope: Scope) -> Meter:
    module, _, function = entry.maker.partition(":")
    meter: Meter = getattr(import_module(module), function)(scope)
    return meter


def _best(rungs: Iterable[Rung]) -> Meter | None:
    return next((_told(rung) for rung in rungs if rung.meter is not None), None)


def _told(rung: Rung) -> Meter:
    assert rung.meter is not None
    if rung.reason != WORKS:
        log.warning("meter %s: %s", rung.name, rung.reason)
    return rung.meter


def _together(meters: list[Meter]) -> Meter:
    if not meters:
        return NullMeter(time.monotonic)
    return meters[0] if len(meters) == 1 else CombinedMeter(meters)
