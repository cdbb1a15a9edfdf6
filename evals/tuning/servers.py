"""Measures settings with real servers: started, warmed up, asked the tasks, ended.

Contract: a server serves all settings that differ in what requests say; what starting it cost is
divided among them. Joules per token are those of the requests' receipts, joules spent are those of
this process and everything below it, the machine's idle share included. A server that does not
start, or refuses a setting, is a trial with an error.

Not covered: settings of the machine itself, such as power limits.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.entry import BenchError
from evals.evaluation import Result, evaluate
from evals.lab import running_server
from evals.served import connect
from evals.tasks.base import Task
from evals.tuning.search import Trial
from evals.tuning.space import Setting, by_server
from greenllm.core import GreenllmError
from greenllm.energy.meter import Meter
from greenllm.energy.window import IdlePower, take_apart
from greenllm.estimate import Estimate, bootstrap

_WARM_UP = 4
_NOTHING = Estimate(0.0, 0.0, 0.0, 0)


class Laps:
    """Joules between two looks at a meter: ours, and the machine's idle share."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._idle = IdlePower(meter.idle_w)
        self._last = meter.read()

    def lap(self) -> float:
        """Joules since the last look."""
        now = self._meter.read()
        window = take_apart(self._last, now, self._idle.watts)
        self._last = now
        return window.own_j


@dataclass(slots=True)
class ServerBench:
    """See the module; `make_tasks` makes tasks of so many examples each."""

    model: str
    make_tasks: Callable[[int], Sequence[Task]]
    concurrency: int
    laps: Laps
    options: Sequence[str] = ()
    say: Callable[[str], None] = field(default=lambda text: None)

    def measure(self, settings: Sequence[Setting], num_examples: int) -> list[Trial]:
        """One trial for each setting, in order."""
        found: dict[int, Trial] = {}
        for places in by_server(settings):
            trials = self._group([settings[place] for place in places], num_examples)
            found |= dict(zip(places, trials, strict=True))
        return [found[place] for place in range(len(settings))]

    def _group(self, settings: Sequence[Setting], num_examples: int) -> list[Trial]:
        self.laps.lap()
        trials: list[Trial] = []
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = [*self.options, *settings[0].options()]
            try:
                url, _ = stack.enter_context(running_server(self.model, folder, *options))
            except GreenllmError as error:
                share_j = self.laps.lap() / len(settings)
                return [self._said(_failed(setting, share_j, error)) for setting in settings]
            started_j = self.laps.lap() / len(settings)
            for setting in settings:
                trial = asyncio.run(self._trial(url, setting, num_examples))
                spent_j = self.laps.lap() + started_j
                trials.append(self._said(replace(trial, spent_j=spent_j)))
        return trials

    async def _trial(self, url: str, setting: Setting, num_examples: int) -> Trial:
        tasks = self.make_tasks(num_examples)
        request: dict[str, Any] = {n: {"method": value} for n, value in setting.request.items()}
        try:
            async with connect(url, None, None, 600.0) as model:
                asked = replace(model, settings=request)
                for i in range(min(_WARM_UP, tasks[0].count())):
                    await asked.answer(tasks[0].example(i))
                results = [
                    await evaluate(asked, task, self.concurrency, lambda done, count: None)
                    for task in tasks
                ]
        except BenchError as error:
            return _failed(setting, 0.0, error)
        return trial_of(setting, results)

    def _said(self, trial: Trial) -> Trial:
        if trial.error is not None:
            self.say(f"{trial.setting}: {trial.error.splitlines()[0]}")
        else:
            self.say(
                f"{trial.setting}: quality {trial.quality.value:.3f},"
                f" {trial.joules_per_token * 1e3:.3f} mJ/token, p95 {trial.p95_s:.2f} s"
            )
        return trial


def trial_of(setting: Setting, results: Sequence[Result]) -> Trial:
    """All tasks together: every example counts alike.

    Raises:
        BenchError: joules are unknown: the server has no meter.
    """
    values = [example.score.value for result in results for example in result.examples]
    quality = bootstrap(values, [1.0] * len(values))
    costs = [cost for result in results for cost in result.costs()]
    joules = [cost.joules for cost in costs if cost.joules is not None]
    tokens = sum(cost.prompt_tokens + cost.completion_tokens for cost in costs)
    if quality is None or len(joules) < len(costs) or not tokens:
        raise BenchError("the server says no joules: settings cannot be compared by them")
    p95_s = max(result.latency_s(0.95) for result in results)
    return Trial(setting, len(values), quality, sum(joules) / tokens, p95_s, 0.0)


def _failed(setting: Setting, spent_j: float, error: Exception) -> Trial:
    return Trial(setting, 1, _NOTHING, math.inf, math.inf, spent_j, str(error))
