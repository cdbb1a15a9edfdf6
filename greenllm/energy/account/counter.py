"""How far the account has followed the counter of one domain.

A counter that has not moved has not ticked: what has been used since is in its next tick. A domain
that leaves the readings keeps its place, and what it counted meanwhile comes in one piece when it
is back.
"""

from __future__ import annotations

from dataclasses import dataclass

from greenllm.energy.account.window import DomainWindow, domain_window
from greenllm.energy.meters.protocol import Reading


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
