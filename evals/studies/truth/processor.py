"""What computes on the simulated machine: steps take time and joules, and true bills are kept.

Contract: a step costs what its law says, times some noise. Each request's true bill gets its
Shapley value of the step, and the idle joules of the step divided by the requests in it. Power is
higher in large steps, so time alone does not tell joules.

Not covered: what the account makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals.studies.truth.costs import Law, Part, Work, work_of
from evals.studies.truth.machine import Machine
from greenllm.core import Chunk

_LAUNCH_S = 1e-4
_ENERGY_NOISE = 0.03
_TIME_NOISE = 0.02
_SMALL_W = 160.0
_LARGE_W = 270.0
_LARGE_ROWS = 64.0


@dataclass(slots=True)
class TrueBill:
    """What a request has really cost; `most_together` is the largest step it was in."""

    active_j: float = 0.0
    idle_j: float = 0.0
    num_steps: int = 0
    most_together: int = 0


class Processor:
    """Runs steps by a law."""

    def __init__(self, machine: Machine, law: Law, seed: int) -> None:
        self.machine = machine
        self.bills: dict[str, TrueBill] = {}
        self._law = law
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Have all noise from here on depend on the seed, and not on how long a rehearsal was."""
        self._noise = np.random.default_rng((seed, 1))
        self._orders = np.random.default_rng((seed, 2))

    def step(self, chunks: Sequence[Chunk]) -> None:
        """A step of the served model."""
        self._compute([Part.of(chunk) for chunk in chunks], 1.0)

    def draft(self, chunks: Sequence[Chunk], ahead: int, size: float) -> None:
        """A step of a draft model of such a size: the token `ahead` after each chunk's last."""
        parts = [
            replace(Part.of(chunk), start=chunk.end + ahead - 1, num_tokens=1, is_prompt=False)
            for chunk in chunks
        ]
        self._compute(parts, size)

    def _compute(self, parts: Sequence[Part], size: float) -> None:
        rows = work_of(parts)
        work = np.array(list(rows.values()))
        total = work.sum(axis=0)
        lawful_j = size * self._law.joules(total)
        energy_noise, time_noise = np.exp(
            self._noise.normal(0.0, 1.0, 2) * (_ENERGY_NOISE, _TIME_NOISE)
        )
        large = 1 - math.exp(-total[Work.ROWS] / _LARGE_ROWS)
        watts = _SMALL_W + (_LARGE_W - _SMALL_W) * large
        seconds = float(time_noise * lawful_j / watts)
        self.machine.rest(_LAUNCH_S)
        self.machine.spend(seconds, float(energy_noise * lawful_j))
        shares = size * energy_noise * self._law.shares(work, self._orders)
        self._book(list(rows), [float(share) for share in shares], seconds + _LAUNCH_S)

    def _book(self, owners: Sequence[str], shares_j: Sequence[float], seconds: float) -> None:
        idle_j = self.machine.idle_w * seconds / len(owners)
        for owner, active_j in zip(owners, shares_j, strict=True):
            bill = self.bills.setdefault(owner, TrueBill())
            bill.active_j += active_j
            bill.idle_j += idle_j
            bill.num_steps += 1
            bill.most_together = max(bill.most_together, len(owners))
