"""After how many solved requests a fine-tune has paid for itself, in joules.

    N = bill / (joules per solved request before - after),  per solved = per answer / share solved

Contract: joules of answers are those that scoring drew, in batches, not those of a server; what
cannot be said is None, with the reason. The upper bound takes both shares at the unfavourable ends
of their intervals, so it is also there where nothing was solved before.

Not covered: what a longer prompt or a larger model would have cost instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenllm.intervals import Interval


@dataclass(frozen=True, slots=True)
class AnswerCost:
    """Joules of one answer, and the share that was right."""

    joules: float
    solved: Interval


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Solved requests until the bill is made up for; None where there is no such number."""

    requests: int | None
    at_most: int | None
    before_j: float | None
    after_j: float | None
    reason: str | None


def break_even(bill_j: float, before: AnswerCost, after: AnswerCost) -> BreakEven:
    """Compare what a solved request costs before and after."""
    before_j, after_j = (_per_solved(found, found.solved.value) for found in (before, after))
    at_most = _requests(
        bill_j, _per_solved(before, before.solved.high), _per_solved(after, after.solved.low)
    )
    if after_j is None:
        return BreakEven(None, None, before_j, None, "never: nothing is solved after training")
    if before_j is None:
        return BreakEven(None, at_most, None, after_j, "nothing was solved before training")
    requests = _requests(bill_j, before_j, after_j)
    reason = "never: a solved request costs no less than before" if requests is None else None
    return BreakEven(requests, at_most, before_j, after_j, reason)


def at_best(bill_j: float, before: AnswerCost) -> int | None:
    """The fewest there can be: if everything is solved afterwards, at the same joules each."""
    return _requests(bill_j, _per_solved(before, before.solved.value), before.joules)


def _per_solved(answers: AnswerCost, share: float) -> float | None:
    return answers.joules / share if share > 0 else None


def _requests(bill_j: float, before_j: float | None, after_j: float | None) -> int | None:
    if before_j is None or after_j is None or before_j <= after_j:
        return None
    return math.ceil(bill_j / (before_j - after_j))
