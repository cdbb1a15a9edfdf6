"""How many threads run a step: an energy lever, set from measurement, by the size of the step.

A second thread makes a small step hardly faster and burns a second core meanwhile. `auto` takes
more threads only where they are at least 1.3 times faster; `eco` takes what needs the least CPU
time, whatever the clock says.

Trials end after a budget: steps too large to be tried in time run as the largest tried ones do.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

log = logging.getLogger(__name__)

ThreadPolicy = Literal["auto", "eco"]

SIZES = (1, 8, 32, 128)
_RUNS = (3, 15)
_ENOUGH_S = 0.1
_MIN_GAIN = 1.3


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """Threads by tokens in the step: `sizes[i]` and above, up to the next, run `threads[i]`."""

    sizes: tuple[int, ...]
    threads: tuple[int, ...]

    @classmethod
    def fixed(cls, threads: int) -> ThreadPlan:
        """The same number for every step."""
        return cls((1,), (threads,))

    def threads_for(self, num_tokens: int) -> int:
        """Threads of a step with that many tokens."""
        chosen = self.threads[0]
        for size, threads in zip(self.sizes, self.threads, strict=True):
            if num_tokens >= size:
                chosen = threads
        return chosen

    def __str__(self) -> str:
        """One number, or each size with its number."""
        if len(set(self.threads)) == 1:
            return str(self.threads[0])
        pairs = zip(self.sizes, self.threads, strict=True)
        return ", ".join(f"{threads} from {size} tokens" for size, threads in pairs)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Least wall and CPU seconds of a step: what else runs on the machine only adds."""

    wall_s: float
    cpu_s: float


def gain(costs: dict[int, StepTime], policy: ThreadPolicy) -> float:
    """How much more threads bring beyond what the policy wants of them, as a logarithm.

    `costs` by number of threads; the most are compared with the fewest.
    """
    few, many = costs[min(costs)], costs[max(costs)]
    if policy == "eco":
        return math.log(few.cpu_s / many.cpu_s)
    return math.log(few.wall_s / (many.wall_s * _MIN_GAIN))


def rising(gains: Sequence[float]) -> int:
    """From which size on more threads run: what they bring there, all in all, is most.

    Where they pay for a step they pay for larger ones, so a single size that says otherwise is
    noise, and the others outvote it.
    """
    return max(range(len(gains), -1, -1), key=lambda first: sum(gains[first:]))


def measure_plan(
    step: Callable[[int, int], None],
    candidates: Sequence[int],
    sizes: Sequence[int],
    policy: ThreadPolicy,
    *,
    budget_s: float = math.inf,
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> ThreadPlan:
    """Try every candidate at every size; `step(num_tokens, threads)` runs one.

    No step begins after `budget_s`. A size counts only when all candidates were tried at it; larger
    ones run as the largest that counts.
    """
    deadline = wall() + budget_s
    tried: list[dict[int, StepTime]] = []
    for size in sizes:
        costs = _costs(partial(step, size), candidates, deadline, wall, cpu)
        if len(costs) < len(candidates):
            break
        tried.append(costs)
    first = rising([gain(costs, policy) for costs in tried])
    most = max(candidates) if first < len(tried) else min(candidates)
    chosen = [min(candidates)] * first + [most] * (len(sizes) - first)
    if len(tried) < len(sizes):
        log.warning(
            "--threads %s: trials ended after %g s, before steps of %d tokens and more were timed:"
            " the model is large for this machine, or something else runs. Such steps take %d"
            " thread(s) until the next start; start again when nothing else runs, or give --threads"
            " a number",
            *(policy, budget_s, sizes[len(tried)], chosen[-1]),
        )
    return ThreadPlan(tuple(sizes), tuple(chosen))


def _costs(
    step: Callable[[int], None],
    candidates: Sequence[int],
    deadline: float,
    wall: Callable[[], float],
    cpu: Callable[[], float],
) -> dict[int, StepTime]:
    """Least costs by number of threads, of those that were timed before the deadline.

    Candidates take turns, so that a busy moment of the machine does not meet one of them only.
    """
    for threads in candidates:
        if wall() < deadline:
            step(threads)  # the first of a shape compiles kernels
    costs: dict[int, StepTime] = {}
    least, most = _RUNS
    enough_s = wall() + _ENOUGH_S
    for number in range(most):
        for threads in candidates:
            if wall() >= (deadline if number < least else min(deadline, enough_s)):
                return costs
            cost = _timed(partial(step, threads), wall, cpu)
            best = costs.get(threads, cost)
            costs[threads] = StepTime(min(best.wall_s, cost.wall_s), min(best.cpu_s, cost.cpu_s))
    return costs


def _timed(
    run: Callable[[], None], wall: Callable[[], float], cpu: Callable[[], float]
) -> StepTime:
    wall_s, cpu_s = wall(), cpu()
    run()
    return StepTime(wall() - wall_s, cpu() - cpu_s)
