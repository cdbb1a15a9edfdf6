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
from functools import lru_cache

from greenllm.energy.account.curve import Curve, between
from greenllm.energy.account.regression import OnlineFit
from greenllm.shape import ModelShape

_MEMORY = 0.998
_SOLVE_EVERY = 16
_LEARN_FROM, _LEARN_ALL, _LEARN_EVERY = 50, 1000, 3
_PULL = 1e-4
_KEPT = 0.99
_POINTS = 4
_EXACT_UP_TO = 6


class Load:
    """What one request has in a step, added up over its sequences; a plain object, for speed.

    Attributes:
        sequences: Sequences of it that run.
        prompts: Sequences that compute a part of their prompt.
        checks: Sequences that check draft tokens.
        flops: Floating point operations.
        kv_bytes: Bytes of keys and values.
        tokens: Tokens that run through the model.
    """

    __slots__ = ("checks", "flops", "kv_bytes", "prompts", "sequences", "tokens")

    def __init__(
        self,
        sequences: float = 0.0,
        prompts: float = 0.0,
        checks: float = 0.0,
        flops: float = 0.0,
        kv_bytes: float = 0.0,
        tokens: float = 0.0,
    ) -> None:
        self.sequences = sequences
        self.prompts = prompts
        self.checks = checks
        self.flops = flops
        self.kv_bytes = kv_bytes
        self.tokens = tokens

    def add(self, other: Load) -> None:
        """Add another one to it."""
        self.sequences += other.sequences
        self.prompts += other.prompts
        self.checks += other.checks
        self.flops += other.flops
        self.kv_bytes += other.kv_bytes
        self.tokens += other.tokens

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
        self._num_errors = self._num_steps = 0

    @property
    def relative_error(self) -> float:
        """By how much steps are off their predicted times, one standard deviation."""
        return self._error if self._num_errors else self._fit.relative_error

    def own_s(self, load: Load) -> float:
        """The part of a step's time that is a request's own, before the curve."""
        _, sequence, prompt, check, flop, byte = self._fit.coefficients
        return (
            sequence * load.sequences
            + prompt * load.prompts
            + check * load.checks
            + flop * load.flops
            + byte * load.kv_bytes
        )

    def learn(self, total: Load, duration_s: float) -> None:
        """Learn how long a step with so much in it took."""
        self._num_steps += 1
        if self._num_steps > _LEARN_ALL and self._num_steps % _LEARN_EVERY:
            return
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

    def shares(self, loads: Sequence[Load], watts: Sequence[float]) -> list[float]:
        """Each request's share of a step's joules; together they are 1.

        Requests with as many tokens differ little: together they have the Shapley values of
        players that are their mean, and divide them as a sum would.

        Args:
            loads: of each request.
            watts: power at the knots of a curve, in any unit.
        """
        count = len(loads)
        if count == 1:
            return [1.0]
        step_s = self._fit.coefficients[0]
        own = [self.own_s(load) for load in loads]
        plain = [step_s / count + own_s for own_s in own]
        groups: dict[float, list[int]] = {}
        for i, load in enumerate(loads):
            groups.setdefault(load.tokens, []).append(i)
        if len(groups) > 1:
            gain = [factor * w for factor, w in zip(self._curve.values, watts, strict=False)]

            def worth(own_s: float, tokens: float) -> float:
                return (step_s + own_s) * between(gain, tokens)

            players = [
                (sum(own[i] for i in members) / len(members), tokens, len(members))
                for tokens, members in groups.items()
            ]
            values = shapley(players, worth)
            for value, members in zip(values, groups.values(), strict=True):
                whole = sum(plain[i] for i in members)
                factor = value * len(members) / whole if whole > 0 else 0.0
                for i in members:
                    plain[i] *= factor
        whole = sum(plain)
        return [value / whole for value in plain] if whole > 0 else [1 / count] * count


# Seconds of its own, tokens, and how many there are of the kind.
Players = tuple[float, float, int]
Worth = Callable[[float, float], float]


def shapley(kinds: Sequence[Players], worth: Worth) -> list[float]:
    """Shapley values of one player of each kind, in a game that depends on sums only."""
    count = sum(kind[2] for kind in kinds)
    total = (sum(k[0] * k[2] for k in kinds), sum(k[1] * k[2] for k in kinds))
    largest = max(range(len(kinds)), key=lambda i: kinds[i][:2])
    # Which one of several that are equally large makes no difference.
    beside = kinds[largest]
    return [
        max(0.0, _value(kind, beside if i != largest or kind[2] > 1 else None, total, count, worth))
        for i, kind in enumerate(kinds)
    ]


def _value(
    own: Players,
    largest: Players | None,
    total: tuple[float, float],
    count: int,
    worth: Worth,
) -> float:
    """The mean of what a player adds, by how many came before it."""
    own_s, own_tokens, _ = own
    rest_s, rest_tokens, num_rest = total[0] - own_s, total[1] - own_tokens, count - 1
    if largest is not None:
        rest_s, rest_tokens = rest_s - largest[0], rest_tokens - largest[1]
        num_rest -= 1

    def added(before: float, beside: Players | None) -> float:
        part = before / num_rest if num_rest else 0.0
        seconds, tokens = rest_s * part, rest_tokens * part
        if beside is not None:
            seconds, tokens = seconds + beside[0], tokens + beside[1]
        return worth(seconds + own_s, tokens + own_tokens) - worth(seconds, tokens)

    value = worth(own_s, own_tokens) / count
    for before, weight in _positions(count):
        if largest is None:
            value += weight * added(before, None)
            continue
        chance = before / (count - 1)
        if chance < 1:
            value += weight * (1 - chance) * added(min(before, num_rest), None)
        value += weight * chance * added(before - 1, largest)
    return value


@lru_cache(maxsize=64)
def _positions(count: int) -> tuple[tuple[float, float], ...]:
    """How many came before, but for none, and how likely that is."""
    if count <= _EXACT_UP_TO:
        return tuple((float(before), 1 / count) for before in range(1, count))
    width = (count - 1) / _POINTS
    return tuple((0.5 + (point + 0.5) * width, width / count) for point in range(_POINTS))


def prior_seconds(shape: ModelShape, *, flops_per_byte: float = 8.0) -> tuple[float, ...]:
    """Ratios to start from: reading the weights once per step, then FLOPs and KV bytes.

    `flops_per_byte` is the machine balance: FLOPs that cost as much as moving one byte. Only ratios
    matter here, the first step sets the level.
    """
    weights_flops = max(flops_per_byte * shape.num_parameters, 1.0)
    little = max(0.05 * weights_flops, 1.0)
    return (weights_flops, little, little, little, 1.0, flops_per_byte)
