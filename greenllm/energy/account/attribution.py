"""Who pays for a step: the Shapley share of a step that costs fixed + additive.

A step costs E = c_step + sum over its requests of

    c_row * rows + c_chunk * chunks + c_flop * flops + c_byte * bytes

where a chunk is several tokens of one sequence at once: a part of a prompt, or draft tokens.
For costs of this form the Shapley value is closed: the fixed part divided by the number of requests
in the step, plus each request's own marginal. Shares are then scaled to what the meter counted in
the window, so they add up to it whatever the coefficients are; the coefficients only decide who.

Pure functions on plain numbers. Not covered: interference between requests (caches), and the
weights a mixture-of-experts step reads, which grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul

from greenllm.shape import ModelShape

Vector = tuple[float, float, float, float, float]
_TERMS = 5
_FIRST_WINDOWS = 50
_FIRST_ROUNDS = 200
_LATER_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one request in one phase, added up over steps.

    `steps` is the sum of 1 / (requests in the step): the request's claim on the fixed parts.
    `residence_s` is the sum of step durations over requests in the step: its claim on idle power.
    """

    steps: float = 0.0
    rows: float = 0.0
    flops: float = 0.0
    kv_bytes: float = 0.0
    residence_s: float = 0.0
    chunks: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.steps + other.steps,
            self.rows + other.rows,
            self.flops + other.flops,
            self.kv_bytes + other.kv_bytes,
            self.residence_s + other.residence_s,
            self.chunks + other.chunks,
        )

    def scaled(self, factor: float) -> Work:
        """A part of it."""
        return Work(
            self.steps * factor,
            self.rows * factor,
            self.flops * factor,
            self.kv_bytes * factor,
            self.residence_s * factor,
            self.chunks * factor,
        )

    @property
    def features(self) -> Vector:
        """The quantities that coefficients multiply."""
        return (self.steps, self.rows, self.flops, self.kv_bytes, self.chunks)


class Tally:
    """Work being added up; a step touches one per request, so it is a plain mutable object."""

    __slots__ = ("chunks", "flops", "kv_bytes", "residence_s", "rows", "steps")

    def __init__(self) -> None:
        self.steps = self.rows = self.flops = self.kv_bytes = self.residence_s = self.chunks = 0.0

    def work(self) -> Work:
        """The sum so far."""
        return Work(self.steps, self.rows, self.flops, self.kv_bytes, self.residence_s, self.chunks)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Joules per step, per row, per FLOP, per KV byte and per chunk of several tokens."""

    step_j: float
    row_j: float
    flop_j: float
    byte_j: float
    chunk_j: float = 0.0

    @property
    def values(self) -> Vector:
        """In the order of `Work.features`."""
        return (self.step_j, self.row_j, self.flop_j, self.byte_j, self.chunk_j)

    def predict_j(self, work: Work) -> float:
        """Active joules this work should cost."""
        pairs = zip(self.values, work.features, strict=True)
        return sum(coefficient * feature for coefficient, feature in pairs)


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


class CoefficientFit:
    """Online non-negative least squares of coefficients against metered windows.

    Windows are weighted by 1 / joules² (relative errors) and forgotten exponentially. A window far
    below its prediction is weighted by the prediction: noise near zero must not outweigh the rest.
    A weak pull towards the prior decides what the data leave open: decode-only traffic cannot tell
    a row from its FLOPs.
    """

    def __init__(self, prior: Coefficients, *, memory: float = 0.98, pull: float = 0.005) -> None:
        self.num_windows = 0
        self.relative_error = 0.5
        self._prior = prior
        self._memory = memory
        self._pull = pull
        self._xx = [[0.0] * _TERMS for _ in range(_TERMS)]
        self._xy = [0.0] * _TERMS
        self._factors = [1.0] * _TERMS
        self._current = prior

    @property
    def coefficients(self) -> Coefficients:
        """The present fit; the prior before the first window."""
        return self._current

    def scale_prior(self, work: Work, energy_j: float) -> None:
        """Set the prior's level from a first window; its ratios stay."""
        predicted_j = self._prior.predict_j(work)
        if predicted_j > 0:
            ratio = energy_j / predicted_j
            self._prior = Coefficients(*(ratio * value for value in self._prior.values))
            self._current = self._prior

    def observe(self, work: Work, energy_j: float) -> None:
        """Learn from a window: all its work, and the active joules metered for it."""
        if energy_j <= 0 or not any(work.features):
            return
        if self.num_windows == 0:
            self.scale_prior(work, energy_j)
        error = abs(self._current.predict_j(work) / energy_j - 1)
        self.num_windows += 1
        keep = min(0.95, 1 - 1 / self.num_windows)
        if self.num_windows > 1:
            self.relative_error = keep * self.relative_error + (1 - keep) * min(error, 2.0)
        self._accumulate(work, energy_j)
        self._current = self._solve()

    def _accumulate(self, work: Work, energy_j: float) -> None:
        # In units of the prior's joules per term, so that all coefficients are near 1.
        terms = zip(self._prior.values, work.features, strict=True)
        scale_j = max(energy_j, self._current.predict_j(work) / 2)
        row = [unit * feature / scale_j for unit, feature in terms]
        for i in range(_TERMS):
            self._xy[i] = self._memory * self._xy[i] + row[i] * (energy_j / scale_j)
            for j in range(_TERMS):
                self._xx[i][j] = self._memory * self._xx[i][j] + row[i] * row[j]

    def _solve(self) -> Coefficients:
        pull = self._pull
        matrix = [
            [value + (pull if i == j else 0.0) for j, value in enumerate(row)]
            for i, row in enumerate(self._xx)
        ]
        # Each window starts where the last one ended, so a few rounds keep up with the data.
        rounds = _FIRST_ROUNDS if self.num_windows < _FIRST_WINDOWS else _LATER_ROUNDS
        target = [value + pull for value in self._xy]
        factors = self._factors = solve_nonnegative(matrix, target, self._factors, rounds=rounds)
        scaled = zip(factors, self._prior.values, strict=True)
        return Coefficients(*(factor * unit for factor, unit in scaled))


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
        if moved < 1e-9:
            break
    return x


def prior_coefficients(shape: ModelShape, *, flops_per_byte: float = 8.0) -> Coefficients:
    """Ratios to start from: reading the weights once per step, then FLOPs and KV bytes.

    `flops_per_byte` is the machine balance: FLOPs that cost as much as moving one byte. Only ratios
    matter here, the first window sets the level.
    """
    weights_flops = flops_per_byte * (shape.body_parameters + shape.head_parameters)
    return Coefficients(
        step_j=max(weights_flops, 1.0),
        row_j=max(0.05 * weights_flops, 1.0),
        flop_j=1.0,
        byte_j=flops_per_byte,
        chunk_j=max(0.05 * weights_flops, 1.0),
    )


def total_work(works: Iterable[Work]) -> Work:
    """Add up work."""
    return sum(works, Work())
