"""Who pays: the work of requests, and how joules are divided in proportion to it.

Pure functions on plain numbers. Not covered: what a step costs (see `steps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one request in one phase, added up over steps.

    Attributes:
        claim_j: What its shares of the steps should cost, by the model of steps: a weight rather
            than joules until power is known. [J]
        flops: Floating point operations. [FLOP]
        residence_s: The duration of each step over the number of requests in it: its claim on idle
            power. [s]
        present_s: The duration of each step that it was in. [s]
    """

    claim_j: float = 0.0
    flops: float = 0.0
    residence_s: float = 0.0
    present_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.claim_j + other.claim_j,
            self.flops + other.flops,
            self.residence_s + other.residence_s,
            self.present_s + other.present_s,
        )

    def scaled(self, factor: float) -> Work:
        """A part of it."""
        return Work(
            self.claim_j * factor,
            self.flops * factor,
            self.residence_s * factor,
            self.present_s * factor,
        )


def split(total: float, weights: Sequence[float]) -> list[float]:
    """Divide `total` in proportion to non-negative weights; equally when all are zero.

    The largest share takes the rounding, so that the shares add up to the total.
    """
    if not weights:
        return []
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1.0] * len(weights), float(len(weights))
    shares = [total * (weight / whole) for weight in weights]
    largest = max(range(len(shares)), key=shares.__getitem__)
    shares[largest] += total - sum(shares)
    return shares


def total_work(works: Iterable[Work]) -> Work:
    """Add up work."""
    return sum(works, Work())
