"""How far a domain's counter has been followed, and what it counted between two ticks, taken apart.

A counter that has not moved has not ticked: what has been used since is in its next tick. A domain
that leaves the readings keeps its place, and what it counted meanwhile comes in one piece when it
is back.

Idle energy is idle power times duration, and never more than what was counted. The rest is active.
On CPU and memory, CPU times say which part of the active energy other processes caused, and which
part of the floor was theirs while they used the machine together with this server.

Not covered: other users of a GPU, whose energy cannot be told from the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greenllm.energy.meters.protocol import Reading, cpu_between

GPU = "gpu"


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Whose CPU time it was: fractions of what the whole machine used."""

    others: float = 0.0
    training: float = 0.0

    @property
    def of_floor(self) -> float:
        """The part of the machine's floor that is this server's while it works."""
        return 1 - self.others


@dataclass(frozen=True, slots=True)
class DomainWindow:
    """Joules of one domain: together they are what it counted.

    Other processes caused `unattributed_j`, and training caused `train_j`.
    """

    start_s: float
    end_s: float
    idle_j: float
    active_j: float
    unattributed_j: float = 0.0
    train_j: float = 0.0
    cpu: CpuShares = CpuShares()

    @property
    def duration_s(self) -> float:
        """From its first moment to its last."""
        return self.end_s - self.start_s

    @property
    def energy_j(self) -> float:
        """All that was counted."""
        return self.idle_j + self.active_j + self.unattributed_j + self.train_j

    def idle_while_busy_j(self, busy_s: float) -> float:
        """The idle energy of the seconds in which requests ran."""
        share = min(1.0, busy_s / self.duration_s) if self.duration_s > 0 else 1.0
        return self.idle_j * share


def domain_window(
    domain: str,
    energy_j: float,
    span_s: tuple[float, float],
    idle_w: float,
    before: Reading,
    now: Reading,
) -> DomainWindow:
    """Take apart what a domain counted in a span of time.

    CPU times and the part of a shared floor are those between the two readings.
    """
    start_s, end_s = span_s
    duration_s = max(0.0, end_s - start_s)
    is_gpu = domain == GPU
    floor_s = duration_s if is_gpu else duration_s * _part_of_floor(before, now)
    idle_j = min(energy_j, idle_w * floor_s)
    cpu = CpuShares() if is_gpu else cpu_shares(before, now)
    above_j = energy_j - idle_j
    unattributed_j, train_j = above_j * cpu.others, above_j * cpu.training
    active_j = max(0.0, above_j - unattributed_j - train_j)
    return DomainWindow(
        start_s, start_s + duration_s, idle_j, active_j, unattributed_j, train_j, cpu
    )


def _part_of_floor(before: Reading, now: Reading) -> float:
    """How much of the floor between two readings was this server's, from 0 to 1."""
    if before.floor_s is None or now.floor_s is None:
        return 1.0
    elapsed_s = now.at_s - before.at_s
    return max(0.0, now.floor_s - before.floor_s) / elapsed_s if elapsed_s > 0 else 1.0


def cpu_shares(before: Reading, now: Reading) -> CpuShares:
    """Shares of others and of training in the CPU time in between; none where it is not told."""
    cpu = cpu_between(before, now)
    if cpu is None or cpu.machine_s <= 0:
        return CpuShares()
    beside = min(1.0, max(0.0, 1 - cpu.own_s / cpu.machine_s))
    training = min(beside, max(0.0, cpu.train_s / cpu.machine_s))
    return CpuShares(beside - training, training)


@dataclass(frozen=True, slots=True)
class Window:
    """Joules of all domains between two readings, idle and active ones per domain."""

    duration_s: float
    idle_j: Mapping[str, float]
    active_j: Mapping[str, float]
    unattributed_j: float
    train_j: float = 0.0

    @property
    def own_j(self) -> float:
        """What this server used, without training."""
        return sum(self.idle_j.values()) + sum(self.active_j.values())


def take_apart(before: Reading, now: Reading, idle_w: Mapping[str, float]) -> Window:
    """Split the difference of two readings; a domain that only one of them has is left out."""
    duration_s = max(0.0, now.at_s - before.at_s)
    parts = {
        domain: domain_window(
            domain,
            max(0.0, joules - before.joules[domain]),
            (before.at_s, before.at_s + duration_s),
            idle_w.get(domain, 0.0),
            before,
            now,
        )
        for domain, joules in now.joules.items()
        if domain in before.joules
    }
    return Window(
        duration_s,
        {domain: part.idle_j for domain, part in parts.items()},
        {domain: part.active_j for domain, part in parts.items()},
        sum(part.unattributed_j for part in parts.values()),
        sum(part.train_j for part in parts.values()),
    )


@dataclass(slots=True)
class DomainCounter:
    """The last tick of a domain, and the reading that showed it.

    `is_gap` says that nobody will know who used what it counts until its next tick; `was_lost`,
    that this is because it was lost while others told what was used.
    """

    domain: str
    joules: float
    as_of_s: float
    reading: Reading
    is_gap: bool = False
    was_lost: bool = False

    @classmethod
    def begin(cls, domain: str, reading: Reading) -> DomainCounter:
        """Follow a domain from a reading on."""
        as_of_s = reading.as_of_s.get(domain, reading.at_s)
        return cls(domain, reading.joules[domain], as_of_s, reading)

    def as_of(self, reading: Reading) -> float:
        """The moment that a later reading's joules are of, never before the last one."""
        return max(self.as_of_s, reading.as_of_s.get(self.domain, reading.at_s))

    def advance(self, reading: Reading, idle_w: float) -> DomainWindow | None:
        """What it has counted since its last tick, taken apart; None where it has not ticked."""
        energy_j = reading.joules[self.domain] - self.joules
        if energy_j <= 0:
            return None
        before, began_s = self.reading, self.as_of_s
        self.joules = reading.joules[self.domain]
        self.as_of_s = self.as_of(reading)
        self.reading = reading
        span_s = (began_s, self.as_of_s)
        return domain_window(self.domain, energy_j, span_s, idle_w, before, reading)
