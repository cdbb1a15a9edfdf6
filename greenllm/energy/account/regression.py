"""Online non-negative least squares: a sum of features times coefficients, learnt as it comes.

Pure functions and one small class on plain numbers; no joules, no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

_FIRST_ROUNDS = 200
_LATER_ROUNDS = 10
_FIRST = 50
_KEPT = 0.95
_CLOSE = 1e-6


class OnlineFit:
    """Coefficients that are never negative, from one observation after the other.

    Observations are weighted by 1 / value² (relative errors) and forgotten exponentially. One far
    below its prediction is weighted by the prediction: noise near zero must not outweigh the rest.
    A weak pull towards the prior decides what the data leave open.

    Args:
        prior: what to begin with; only its ratios matter, the first observation sets the level.
        memory: how much of its weight an observation keeps when the next one comes.
        pull: weight of the prior.
        solve_every: after so many observations the coefficients are made anew.
    """

    def __init__(
        self,
        prior: Sequence[float],
        *,
        memory: float = 0.98,
        pull: float = 0.005,
        solve_every: int = 1,
    ) -> None:
        self.num_observations = 0
        self.relative_error = 0.5
        self.coefficients = tuple(prior)
        self._prior = tuple(prior)
        self._memory = memory
        self._pull = pull
        self._solve_every = solve_every
        size = len(self._prior)
        self._xx = [[0.0] * size for _ in range(size)]
        self._xy = [0.0] * size
        self._factors = [1.0] * size

    def predict(self, features: Sequence[float]) -> float:
        """The value that belongs to features."""
        return float(sum(map(mul, self.coefficients, features)))

    def observe(self, features: Sequence[float], value: float) -> None:
        """Learn that features had a value; what is not positive teaches nothing."""
        predicted = self.predict(features)
        if value <= 0 or not any(features):
            return
        if self.num_observations == 0:
            ratio = value / predicted
            self._prior = self.coefficients = tuple(ratio * unit for unit in self._prior)
            predicted = value
        self.num_observations += 1
        if self.num_observations > 1:
            keep = min(_KEPT, 1 - 1 / (self.num_observations - 1))
            error = min(abs(predicted / value - 1), 2.0)
            self.relative_error = (keep * self.relative_error**2 + (1 - keep) * error**2) ** 0.5
        self._accumulate(features, value, predicted)
        if self.num_observations < _FIRST or self.num_observations % self._solve_every == 0:
            self._solve()

    def _accumulate(self, features: Sequence[float], value: float, predicted: float) -> None:
        # In units of the prior's terms, so that all coefficients are near 1.
        scale = max(value, predicted / 2)
        row = [unit * feature / scale for unit, feature in zip(self._prior, features, strict=True)]
        memory, target = self._memory, value / scale
        for i, xi in enumerate(row):
            self._xy[i] = memory * self._xy[i] + xi * target
            self._xx[i] = [memory * old + xi * xj for old, xj in zip(self._xx[i], row, strict=True)]

    def _solve(self) -> None:
        pull = self._pull
        matrix = [
            [value + (pull if i == j else 0.0) for j, value in enumerate(row)]
            for i, row in enumerate(self._xx)
        ]
        # Each solution starts where the last one ended, so a few rounds keep up with the data.
        rounds = _FIRST_ROUNDS if self.num_observations < _FIRST else _LATER_ROUNDS
        target = [value + pull for value in self._xy]
        self._factors = solve_nonnegative(matrix, target, self._factors, rounds=rounds)
        self.coefficients = tuple(map(mul, self._factors, self._prior))


def solve_nonnegative(
    matrix: Sequence[Sequence[float]],
    target: Sequence[float],
    start: Sequence[float],
    *,
    rounds: int = 200,
) -> list[float]:
    """Minimise x'Ax/2 - b'x over x >= 0 for a positive definite A, by coordinate descent."""
    x = list(start)
    for _ in range(rounds):
        moved = 0.0
        for i, row in enumerate(matrix):
            rest = sum(map(mul, row, x)) - row[i] * x[i]
            new = max(0.0, (target[i] - rest) / row[i])
            moved = max(moved, abs(new - x[i]))
            x[i] = new
        if moved < _CLOSE:
            break
    return x
