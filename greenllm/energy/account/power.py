"""Active power of one domain by how many tokens a step has, learnt from metered windows.

A window tells only its joules; how long steps of each width ran in it is known. Drafting is a width
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from greenllm.energy.account.curve import KNOTS, between
from greenllm.energy.account.regression import OnlineFit

DRAFTING = KNOTS
WIDTHS = KNOTS + 1
_MEMORY = 0.99
_SOLVE_EVERY = 4


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
