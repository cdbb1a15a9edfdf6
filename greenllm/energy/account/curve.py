"""A factor that depends on how many tokens a step has, learnt at 1, 2, 4, ... tokens.

Steps are not simply a sum of their parts: wide steps use the machine better, kernels work in tiles,
and what is limited by memory computes for nothing. A curve holds what a sum leaves over.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

KNOTS = 12
_RATE = 0.08
_FURTHEST = 4.0


def place_of(tokens: float) -> tuple[int, float]:
    """The knot below a number of tokens, and how far towards the next one it is, from 0 to 1."""
    position = min(log2(tokens), KNOTS - 1.0) if tokens > 1 else 0.0
    knot = min(int(position), KNOTS - 2)
    return knot, position - knot


def between(values: Sequence[float], tokens: float) -> float:
    """The value of a curve for a number of tokens."""
    knot, part = place_of(tokens)
    return values[knot] * (1 - part) + values[knot + 1] * part


class Curve:
    """A factor around 1 by tokens; a knot that nothing was seen near is as its neighbour."""

    def __init__(self) -> None:
        self.values = [1.0] * KNOTS
        self._weights = [0.0] * KNOTS
        self._nearest = list(range(KNOTS))

    def at(self, tokens: float) -> float:
        """The factor for a number of tokens."""
        return between(self.values, tokens)

    def observe(self, tokens: float, factor: float) -> None:
        """Learn that a step with so many tokens had a factor."""
        factor = min(max(factor, 1 / _FURTHEST), _FURTHEST)
        knot, part = place_of(tokens)
        error = factor - self.at(tokens)
        for index, weight in ((knot, 1 - part), (knot + 1, part)):
            if weight <= 0:
                continue
            is_new = not self._weights[index]
            self._weights[index] += weight
            if is_new:
                self._find_nearest()
            # At first the mean of all, later the mean of the last ones.
            rate = max(_RATE, 1 / (1 + self._weights[index]))
            self.values[index] += rate * weight * error
        self._spread()

    def _spread(self) -> None:
        for index, nearest in enumerate(self._nearest):
            if nearest != index:
                self.values[index] = self.values[nearest]

    def _find_nearest(self) -> None:
        seen = [index for index, weight in enumerate(self._weights) if weight]
        self._nearest = [min(seen, key=lambda s: abs(s - index)) for index in range(KNOTS)]
