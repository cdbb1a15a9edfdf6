"""What a step of the model costs, learnt from how long steps take, and whose share is what.

The time of a step is a fixed part and a sum over its requests, times a factor that depends on how
many tokens there are in all. Times power, which depends on the same number, it is joules. A
request's share is its Shapley value in that game: what it adds, on average over all orders in which
the requests could have come. For a sum that is its own part and 1/n of the fixed one; else the
others that came before are taken at their mean, with and without the largest of them.

Pure functions on plain numbers. Not covered: which requests are which, and what the meter says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greenllm.energy.account.curve import Curve
from greenllm.energy.account.regression import OnlineFit
from greenllm.shape import ModelShape

_MEMORY = 0.998
_SOLVE_EVERY = 16
_LEARN_FROM = 50
_PULL = 1e-4
_KEPT = 0.99
_POINTS = 4
_EXACT_UP_TO = 6


@dataclass(frozen=True, slots=True)
class Load:
    """What one request has in a step.

    Attributes:
        sequences: Sequences of it that run.
        prompts: Sequences that compute a part of their prompt.
        checks: Sequences that check draft tokens.
        flops: Floating point operations.
        kv_bytes: Bytes of keys and values.
        tokens: Tokens that run through the model.
    """

    sequences: float = 0.0
    prompts: float = 0.0
    checks: float = 0.0
    flops: float = 0.0
    kv_bytes: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.sequences + other.sequences,
            self.prompts + other.prompts,
            self.checks + other.checks,
            self.flops + other.flops,
            self.kv_bytes + other.kv_bytes,
            self.tokens + other.tokens,
        )

    @property
    def features(self) -> tuple[float, ...]:
        """What coefficients multiply, after the step itself."""
        return (self.sequences, self.prompts, self.checks, self.flops, self.kv_bytes)


class StepModel:
    """Times of steps, and shares in them."""

    def __init__(self, shape: ModelShape) -> None:
        self._fit = OnlineFit(
            prior_seconds(shape), memory=_MEMORY, pull=_PULL, solve_every=_SOLVE_EVERY
        )
        self._curve = Curve()
        self._error = 0.0
        self._num_errors = 0

    @property
    def relative_error(self) -> float:
        """By how much steps are off their predicted times, one standard deviation."""
        return self._error if self._num_errors else self._fit.relative_error

    def own_s(self, load: Load) -> float:
        """The part of a step's time that is a request's own, before the curve."""
        return sum(
            c * feature
            for c, feature in zip(self._fit.coefficients[1:], load.features, strict=True)
        )

    def learn(self, total: Load, duration_s: float) -> None:
        """Learn how long a step with so much in it took."""
        features = (1.0, *total.features)
        if self._fit.num_observations >= _LEARN_FROM:
            ratio = duration_s / max(self._fit.predict(features), 1e-12)
            self._note_error(min(abs(self._curve.at(total.tokens) / max(ratio, 1e-12) - 1), 1.0))
            self._curve.observe(total.tokens, ratio)
        self._fit.observe(features, duration_s)

    def _note_error(self, error: float) -> None:
        self._num_errors += 1
        keep = min(_KEPT, 1 - 1 / self._num_errors)
        self._error = (keep * self._error**2 + (1 - keep) * error**2) ** 0.5

    def shares(self, loads: Sequence[Load], power: Callable[[float], float]) -> list[float]:
        """Each request's share of a step's joules; together they are 1.

        Args:
            loads: of each request.
            power: watts, or something in proportion, of a step by its number of tokens.
        """
        if len(loads) == 1:
            return [1.0]
        step_s, curve = self._fit.coefficients[0], self._curve

        def worth(own_s: float, tokens: float) -> float:
            return (step_s + own_s) * curve.at(tokens) * power(tokens)

        found = shapley([(self.own_s(load), load.tokens) for load in loads], worth)
        whole = sum(found)
        return [value / whole for value in found] if whole > 0 else [1 / len(loads)] * len(loads)


Player = tuple[float, float]


def shapley(players: Sequence[Player], worth: Callable[[float, float], float]) -> list[float]:
    """Shapley values of players with two quantities, in a game that depends on their sums only.

    Nearly equal players get equal values, and are computed once.
    """
    total = (sum(p[0] for p in players), sum(p[1] for p in players))
    largest = max(range(len(players)), key=lambda i: players[i])
    known: dict[tuple[str, float, bool], float] = {}
    values = []
    for i, player in enumerate(players):
        key = (f"{player[0]:.2e}", player[1], i == largest)
        if key not in known:
            known[key] = _value(
                player, None if i == largest else players[largest], total, len(players), worth
            )
        values.append(max(0.0, known[key]))
    return values


def _value(
    own: Player,
    largest: Player | None,
    total: Player,
    count: int,
    worth: Callable[[float, float], float],
) -> float:
    """The mean of what a player adds, by how many came before it."""
    others = (total[0] - own[0], total[1] - own[1])
    if largest is not None:
        others = (others[0] - largest[0], others[1] - largest[1])
    num_others = count - 1 - (largest is not None)

    def added(before: float, with_largest: bool) -> float:
        part = before / num_others if num_others else 0.0
        seconds, tokens = others[0] * part, others[1] * part
        if with_largest and largest is not None:
            seconds, tokens = seconds + largest[0], tokens + largest[1]
        return worth(seconds + own[0], tokens + own[1]) - worth(seconds, tokens)

    value = worth(*own) / count
    for before, weight in _positions(count):
        if largest is None:
            value += weight * added(before, False)
            continue
        chance = before / (count - 1)
        if chance < 1:
            value += weight * (1 - chance) * added(min(before, num_others), False)
        value += weight * chance * added(before - 1, True)
    return value


def _positions(count: int) -> list[tuple[float, float]]:
    """How many came before, but for none, and how likely that is."""
    if count <= _EXACT_UP_TO:
        return [(float(before), 1 / count) for before in range(1, count)]
    width = (count - 1) / _POINTS
    return [(0.5 + (point + 0.5) * width, width / count) for point in range(_POINTS)]


def prior_seconds(shape: ModelShape, *, flops_per_byte: float = 8.0) -> tuple[float, ...]:
    """Ratios to start from: reading the weights once per step, then FLOPs and KV bytes.

    `flops_per_byte` is the machine balance: FLOPs that cost as much as moving one byte. Only ratios
    matter here, the first step sets the level.
    """
    weights_flops = max(flops_per_byte * shape.num_parameters, 1.0)
    little = max(0.05 * weights_flops, 1.0)
    return (weights_flops, little, little, little, 1.0, flops_per_byte)
