"""`auto`: which way of drafting is cheapest at each batch size, by what steps have cost.

A step's active joules are its time times a power that does not depend on the way of drafting, so
seconds per token rank the ways as joules per token would, and are known after every step. For each
size of batch (1, 2-3, 4-7, ...) the controller keeps an average of them for every arm: a method and
a number of tokens, or `off`. It uses the cheapest, and leaves it only for one that is cheaper by
`SWITCH_BELOW`. A size that is new begins with what is cheapest at the nearest one. Now and then it
tries another arm for `TRIAL_STEPS` steps: rarely, and ever more rarely the more expensive the arm
was; a trial that goes badly ends after a few steps.

Pure: no clock, no randomness. Not covered: choices by request; acceptance that differs between the
sequences of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from greenllm.core import Speculation

SWITCH_BELOW = 0.97
TRIAL_STEPS = 12
LEAST_STEPS = 4
HOPELESS_ABOVE = 1.25
FIRST_GAP = 128
LONGEST_GAP = 4096
_KEEP = 0.98
# What an arm cost when it was last used weighs as much as so many steps when it is tried again.
_RECALLED = 12
_FAR_OFF = 1.08
# Whether a trial is due is looked at once in so many steps.
_LOOK_EVERY = 4


def bucket_of(batch_size: int) -> int:
    """Sizes of 1, 2-3, 4-7, 8-15, ... are told apart; the least of each names it."""
    return 1 << (max(1, batch_size).bit_length() - 1)


class StepCost(NamedTuple):
    """What one step of decoding took and gave; made at every step, so cheap to make."""

    duration_s: float
    num_tokens: int
    num_drafted: int
    num_accepted: int


@dataclass(slots=True)
class Arm:
    """A way of drafting at one batch size, and what it has cost: running means over its steps.

    `gap` counts the steps that have to pass before its next trial.
    """

    choice: Speculation
    mean_s: float = 0.0
    mean_tokens: float = 0.0
    mean_drafted: float = 0.0
    mean_accepted: float = 0.0
    gap: int = TRIAL_STEPS
    tried_at: int = 0
    num_steps: int = 0

    @property
    def cost_s(self) -> float | None:
        """Seconds per token; None before the first."""
        return self.mean_s / self.mean_tokens if self.mean_tokens else None

    @property
    def acceptance(self) -> float | None:
        """Share of draft tokens that were accepted; None where there were none."""
        return self.mean_accepted / self.mean_drafted if self.mean_drafted else None

    def learn(self, step: StepCost) -> None:
        """Take one step into the means."""
        self.num_steps += 1
        share = max(1 - _KEEP, 1 / self.num_steps)
        self.mean_s += share * (step.duration_s - self.mean_s)
        self.mean_tokens += share * (step.num_tokens - self.mean_tokens)
        self.mean_drafted += share * (step.num_drafted - self.mean_drafted)
        self.mean_accepted += share * (step.num_accepted - self.mean_accepted)


@dataclass(slots=True)
class _Bucket:
    """The arms at one batch size; `trial` is being tried for `left` more steps."""

    arms: list[Arm]
    best: Arm
    trial: Arm | None = None
    left: int = 0
    step: int = 0


@dataclass(slots=True)
class Controller:
    """Chooses an arm for each step; `choices` are the arms, `off` among them."""

    choices: Sequence[Speculation]
    _buckets: dict[int, _Bucket] = field(default_factory=dict)

    def choose(self, batch_size: int) -> Speculation:
        """What the next step of so many sequences should do."""
        bucket = self._bucket(batch_size)
        return (bucket.trial or bucket.best).choice

    def learn(self, batch_size: int, step: StepCost) -> None:
        """Take what a step of the chosen arm cost.

        The first step of a trial is not counted: it may have compiled something.
        """
        bucket = self._bucket(batch_size)
        bucket.step += 1
        is_first = bucket.trial is not None and bucket.left == TRIAL_STEPS
        if not is_first:
            (bucket.trial or bucket.best).learn(step)
        if bucket.trial is not None:
            bucket.left -= 1
            if bucket.left < 0 or _is_lost(bucket):
                _end_trial(bucket)
        elif bucket.step % _LOOK_EVERY == 0:
            _begin_trial(bucket)

    def skip(self, batch_size: int) -> None:
        """Let a step pass from which nothing can be learnt; a trial does not wait for others."""
        bucket = self._buckets.get(bucket_of(batch_size))
        if bucket is not None and bucket.trial is not None:
            bucket.left -= 1
            if bucket.left < 0:
                bucket.trial.tried_at = bucket.step
                bucket.trial = None

    def state(self) -> dict[int, list[Arm]]:
        """The arms by batch size, the one in use first."""
        return {
            size: sorted(bucket.arms, key=lambda arm: arm is not bucket.best)
            for size, bucket in sorted(self._buckets.items())
        }

    def _bucket(self, batch_size: int) -> _Bucket:
        size = bucket_of(batch_size)
        if size not in self._buckets:
            self._buckets[size] = self._new_bucket(size)
        return self._buckets[size]

    def _new_bucket(self, size: int) -> _Bucket:
        """Begin with what is cheapest at the nearest size; what is dear there is tried later."""
        arms = [Arm(choice) for choice in self.choices]
        if not self._buckets:
            return _Bucket(arms, next(arm for arm in arms if arm.choice.method == "off"))
        nearest = min(self._buckets, key=lambda known: (abs(math.log2(known / size)), known))
        known = self._buckets[nearest]
        for arm, there in zip(arms, known.arms, strict=True):
            if _is_dear(there, known.best):
                arm.gap = FIRST_GAP
        return _Bucket(arms, arms[known.arms.index(known.best)])


def _begin_trial(bucket: _Bucket) -> None:
    """Start to try the arm that has waited longest, of those that are due.

    An arm is due after its gap, or sooner if it was cheaper than the one in use has become.
    """
    best = bucket.best
    if best.cost_s is None or best.num_steps < TRIAL_STEPS:
        return
    due: list[Arm] = []
    for arm in bucket.arms:
        waited = bucket.step - arm.tried_at
        was_cheaper = arm.cost_s is not None and arm.cost_s < SWITCH_BELOW * best.cost_s
        if arm is not best and waited >= (TRIAL_STEPS if was_cheaper else arm.gap):
            due.append(arm)
    if due:
        bucket.trial = min(due, key=lambda arm: arm.tried_at)
        bucket.trial.num_steps = min(bucket.trial.num_steps, _RECALLED)
        bucket.left = TRIAL_STEPS


def _is_dear(arm: Arm, best: Arm) -> bool:
    """Whether an arm is known to cost far more than the best."""
    known = arm.cost_s is not None and best.cost_s is not None
    return known and arm.cost_s > HOPELESS_ABOVE * best.cost_s  # type: ignore[operator]


def _is_lost(bucket: _Bucket) -> bool:
    """Whether a trial need not go on: it costs far more, however its next steps turn out."""
    arm, best_s = bucket.trial, bucket.best.cost_s
    if arm is None or arm.cost_s is None or best_s is None:
        return False
    if TRIAL_STEPS - bucket.left < LEAST_STEPS:
        return False
    return arm.cost_s > HOPELESS_ABOVE * best_s


def _end_trial(bucket: _Bucket) -> None:
    """Use the arm from now on if it was cheaper; else wait longer the more it cost."""
    arm, best = bucket.trial, bucket.best
    bucket.trial = None
    if arm is None:
        return
    arm.tried_at = bucket.step
    if arm.cost_s is None or best.cost_s is None:
        return
    if arm.cost_s < SWITCH_BELOW * best.cost_s:
        best.tried_at, best.gap = bucket.step, FIRST_GAP
        bucket.best = arm
    else:
        factor = 4 if arm.cost_s > _FAR_OFF * best.cost_s else 2
        arm.gap = min(LONGEST_GAP, max(FIRST_GAP, factor * arm.gap))
