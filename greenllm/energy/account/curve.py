"""What depends on how many tokens a step has, at 1, 2, 4, ... tokens: a factor, and active power.

Steps are not simply a sum of their parts: wide steps use the machine better, kernels work in tiles,
and what is limited by memory computes for nothing. A `Curve` holds what a sum leaves over. The
power of one domain is learnt from metered windows: a window tells only its joules, and how long
steps of each width ran in it is known. Drafting is a width of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

from greenllm.energy.account.regression import OnlineFit

KNOTS = 12
_RATE = 0.08
_FURTHEST = 4.0
DRAFTING = KNOTS
WIDTHS = KNOTS + 1
_MEMORY = 0.99
_SOLVE_EVERY = 4


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


class PowerFit:
    """Watts by width; widths that no window had are like the nearest one that some had."""

    def __init__(self) -> None:
        self._fit = OnlineFit([1.0] * WIDTHS, memory=_MEMORY, solve_every=_SOLVE_EVERY)
        self._seen_s = [0.0] * WIDTHS
        self.watts: list[float] = [1.0] * WIDTHS

    @property
    def num_windows(self) -> int:
        """Windows that it has learnt from."""
        return self._fit.num_observations

    @property
    def relative_error(self) -> float:
        """By how much windows are off their predictions, one standard deviation."""
        return self._fit.relative_error

    def at(self, tokens: float) -> float:
        """Watts of a step with so many tokens."""
        return between(self.watts, tokens)

    def predict_j(self, busy_s: Sequence[float]) -> float:
        """Active joules of so many seconds at each width."""
        return sum(watts * seconds for watts, seconds in zip(self.watts, busy_s, strict=True))

    def observe(self, busy_s: Sequence[float], active_j: float) -> None:
        """Learn from a window: its seconds at each width, and the active joules metered in it."""
        if active_j <= 0 or not any(busy_s):
            return
        self._fit.observe(busy_s, active_j)
        self._seen_s = [_MEMORY * old + new for old, new in zip(self._seen_s, busy_s, strict=True)]
        least_s = 0.02 * max(self._seen_s)
        seen = [width for width, seconds in enumerate(self._seen_s) if seconds >= least_s]
        found = self._fit.coefficients
        # Drafting is no neighbour of any width; where there was none, it is like a narrow step.
        wide = [width for width in seen if width != DRAFTING] or [DRAFTING]
        self.watts = [found[min(wide, key=lambda w: abs(w - width))] for width in range(KNOTS)]
        self.watts.append(found[DRAFTING] if DRAFTING in seen else self.watts[0])
