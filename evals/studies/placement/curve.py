"""What one machine does at each batch size, read from a measured result.

Contract: seconds and joules of a step are straight lines between measured batch sizes, and nothing
is said beyond them. The measured load had prompts in it; where the result has the cost of a prompt
token, it is taken out of the steps, so that a step is generation alone and prompts are added by
whoever simulates. What a result does not say is None.

Read are results of the studies `peers`, `runners`, `gpu` and `techniques` (there an arm is
`weights:guessing`). Not covered: steps and prompts that get dearer with the context.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evals.entry import BenchError

WANTED = "take a result of the studies peers, runners, gpu or techniques"


@dataclass(frozen=True, slots=True)
class Point:
    """One measured batch size; prompts of the load are in both figures."""

    batch: int
    tokens_per_s: float
    joules_per_token: float


@dataclass(frozen=True, slots=True)
class PromptCost:
    """Reading prompts: a token's seconds and joules do not depend on what else runs."""

    s_per_token: float
    j_per_token: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Steps of generation by batch size.

    Args:
        points: measured batch sizes, rising, from 1 on.
        prompt: cost of a prompt token, None where the result does not have it.
        prompt_share: prompt tokens per generated token of the measured load; 0 leaves them in.
        start_s: seconds from starting a server to its first answer, None where not measured.
        methods: how the joules came about, None where the result does not say.
    """

    points: tuple[Point, ...]
    prompt: PromptCost | None = None
    prompt_share: float = 0.0
    start_s: float | None = None
    methods: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        sizes = [point.batch for point in self.points]
        if not sizes or sizes[0] != 1 or sizes != sorted(set(sizes)):
            raise BenchError(f"a curve needs rising batch sizes from 1 on, not {sizes}")
        if any(min(p.tokens_per_s, p.joules_per_token) <= 0 for p in self.points):
            raise BenchError("tokens per second and joules per token must be above 0")
        if any(min(self.step_s(size), self.step_j(size)) <= 0 for size in sizes):
            raise BenchError("the prompts alone would take longer than the measured load")

    @property
    def largest(self) -> int:
        """The largest measured batch."""
        return self.points[-1].batch

    def step_s(self, batch: int) -> float:
        """Seconds in which each of `batch` sequences gets a token."""
        prompt_s = self.prompt.s_per_token if self.prompt else 0.0
        whole_s = self._between(batch, [p.batch / p.tokens_per_s for p in self.points])
        return whole_s - batch * self.prompt_share * prompt_s

    def step_j(self, batch: int) -> float:
        """Joules of such a step, the machine's idle power included."""
        prompt_j = self.prompt.j_per_token if self.prompt else 0.0
        whole_j = self._between(batch, [p.batch * p.joules_per_token for p in self.points])
        return whole_j - batch * self.prompt_share * prompt_j

    def power_w(self, batch: int) -> float:
        """Watts while so many sequences generate."""
        return self.step_j(batch) / self.step_s(batch)

    def _between(self, batch: int, values: list[float]) -> float:
        sizes = [point.batch for point in self.points]
        if not 1 <= batch <= sizes[-1]:
            raise BenchError(
                f"batch {batch} was not measured: the curve goes from 1 to {sizes[-1]}"
            )
        right = bisect_left(sizes, batch)
        if sizes[right] == batch:
            return values[right]
        part = (batch - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return values[right - 1] + part * (values[right] - values[right - 1])


def read_curve(result: Mapping[str, Any], arm: str) -> Curve:
    """The curve of one arm of a result.

    Raises:
        BenchError: there is no such arm, or it has no joules or no tokens per second by batch size.
    """
    found = _arm(result, arm)
    cells = found.get("loads") or found.get("batches") or found
    sizes = sorted(int(size) for size in cells if size.isdigit())
    points = tuple(_point(arm, size, cells[str(size)]) for size in sizes)
    if not points:
        raise BenchError(f"{arm} has no figures by batch size: {WANTED}")
    plan = result.get("plan")
    prompt = _prompt_cost(plan, cells.get("prefill"))
    share = plan["prompt_tokens"] / plan["max_tokens"] if plan and prompt else 0.0
    return Curve(points, prompt, share, _start_s(result, arm), _methods(result, arm))


def idle_w(result: Mapping[str, Any], arm: str) -> float:
    """Watts of a machine without work: what total joules have above active ones, by time.

    Raises:
        BenchError: the result does not have both.
    """
    found = _arm(result, arm)
    cells = (found.get("batches") or {}).values()
    watts = [
        (cell["joules_per_token"] - cell["active_joules_per_token"]) * cell["tokens_per_s"]
        for cell in cells
        if cell.get("active_joules_per_token") is not None
    ]
    if not watts:
        raise BenchError(
            f"{arm} has no active joules: take a result of evals.studies.runners, or assume"
        )
    return float(statistics.median(watts))


def _arm(result: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    arms: dict[str, Mapping[str, Any]] = dict(result.get("arms") or {})
    for weights, ways in (result.get("precisions") or {}).items():
        arms |= {f"{weights}:{way}": cells for way, cells in ways.items()}
    if not arms:
        raise BenchError(f"the result has no arms with tokens per second: {WANTED}")
    if arm not in arms:
        raise BenchError(f"no arm {arm!r}; there are {', '.join(arms)}")
    return arms[arm]


def _point(arm: str, size: int, cell: Mapping[str, Any]) -> Point:
    rate, joules = cell.get("tokens_per_s"), cell.get("joules_per_token")
    if joules is None and cell.get("gpu_joules_per_token") is not None:
        joules = cell["gpu_joules_per_token"] + cell["cpu_joules_per_token"]
    if rate is None or joules is None:
        missing = "tokens per second" if rate is None else "joules per token"
        raise BenchError(f"{arm} at batch {size} has no {missing}: {WANTED}, and an arm with both")
    return Point(size, float(rate), float(joules))


def _prompt_cost(
    plan: Mapping[str, Any] | None, cell: Mapping[str, Any] | None
) -> PromptCost | None:
    """From a load of long prompts and answers of one token, which comes with the prompt."""
    if not plan or not cell or cell.get("joules_per_token") is None:
        return None
    j_per_token = cell["joules_per_token"] / plan["prefill_tokens"]
    return PromptCost(1 / cell["prompt_tokens_per_s"], j_per_token)


def _turns(result: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    return list((result.get("turns") or {}).get(arm) or ())


def _start_s(result: Mapping[str, Any], arm: str) -> float | None:
    seen = [turn["ready_s"] for turn in _turns(result, arm) if "ready_s" in turn]
    if seen:
        return float(statistics.median(seen))
    start_s: float | None = (result.get("arms") or {}).get(arm, {}).get("start_s")
    return start_s


def _methods(result: Mapping[str, Any], arm: str) -> tuple[str, ...] | None:
    told = (result.get("energy") or {}).get("methods")
    found = set(told or ()) | set(_methods_of_turns(result, arm))
    return tuple(sorted(found)) or None


def _methods_of_turns(result: Mapping[str, Any], arm: str) -> Iterator[str]:
    for turn in _turns(result, arm):
        for load in turn.get("loads", {}).values():
            energy = load.get("summary", {}).get("energy")
            if energy:
                yield energy["method"]
