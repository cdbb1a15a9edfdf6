"""Measures settings with real servers: started, warmed up, asked the tasks, ended.

Contract: a server serves all settings that differ in what requests say; what starting it cost is
divided among them. Settings that are compared answer in turns, part by part, so that what else
happens on the machine is shared. Joules per token are those of the requests' receipts, joules spent
are those of this process and everything below it, the machine's idle share included. A server that
does not start, or refuses a setting, is a trial with an error. Who answers first changes from part
to part.

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
from evals.evaluation import TaskResult, evaluate
from evals.served import connect
from evals.servers import running_server
from evals.tasks.base import Task
from evals.tuning.search import Trial
from evals.tuning.slices import slices, whole
from evals.tuning.space import Server, Setting, by_server, options_of
from greenllm.core import GreenllmError
from greenllm.energy.account.idle import IdlePower
from greenllm.energy.account.window import take_apart
from greenllm.energy.meters.protocol import Meter
from greenllm.intervals import Interval, bootstrap, wilson

_WARM_UP = 4
PARTS = 4
_NOTHING = Interval(0.0, 0.0, 0.0, 0)


class Laps:
    """Joules between two looks at a meter: ours, and the machine's idle share."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._idle = IdlePower(meter.idle_w)
        self._last = meter.read()

    def lap(self) -> float:
        """Joules since the last look.

        Raises:
            GreenllmError: some are missing, and settings cannot be compared by the rest.
        """
        now = self._meter.read()
        if hole := now.hole_since(self._last):
            raise GreenllmError(f"the meter does not count all joules any more: {hole}")
        window = take_apart(self._last, now, self._idle.watts)
        self._last = now
        return window.own_j


@dataclass(slots=True)
class ServerBench:
    """See the module; `make_tasks` makes tasks of so many examples each.

    Up to `most` servers are kept running, those used last, until `close`.
    """

    model: str
    make_tasks: Callable[[int], Sequence[Task]]
    concurrency: int
    laps: Laps
    options: Sequence[str] = ()
    say: Callable[[str], None] = field(default=lambda text: None)
    most: int = 3
    _running: dict[Server, tuple[str, ExitStack]] = field(default_factory=dict)

    def measure(self, settings: Sequence[Setting], num_examples: int) -> list[Trial]:
        """One trial for each setting, in order; those whose servers run already come first."""
        groups = by_server(settings)
        groups.sort(key=lambda places: settings[places[0]].server not in self._running)
        found: dict[int, Trial] = {}
        for first in range(0, len(groups), self.most):
            places = [place for group in groups[first : first + self.most] for place in group]
            trials = self._in_turns([settings[place] for place in places], num_examples)
            found |= dict(zip(places, trials, strict=True))
        return [found[place] for place in range(len(settings))]

    def close(self) -> None:
        """End the servers."""
        for server in list(self._running):
            self._end(server)

    def _end(self, server: Server) -> None:
        _, stack = self._running.pop(server)
        stack.close()

    def _in_turns(self, settings: Sequence[Setting], num_examples: int) -> list[Trial]:
        """Part of the examples to one setting after the other, then the next part."""
        spent_j, failures = self._start([setting.server for setting in settings])
        results: list[list[TaskResult]] = [[] for _ in settings]
        parts = slices(self.make_tasks(num_examples), PARTS)
        for number, part in enumerate(parts):
            order = range(len(settings))
            for place in reversed(order) if number % 2 else order:
                setting = settings[place]
                if failures[place] is None:
                    url, _ = self._running[setting.server]
                    try:
                        asked = self._ask(url, setting, part, is_first=not number)
                        results[place] += asyncio.run(asked)
                    except BenchError as error:
                        failures[place] = error
                    spent_j[place] += self.laps.lap()
        return [
            self._said(_trial(setting, found, cost_j, failure))
            for setting, found, cost_j, failure in zip(
                settings, results, spent_j, failures, strict=True
            )
        ]

    def _start(self, servers: Sequence[Server]) -> tuple[list[float], list[GreenllmError | None]]:
        """Have them running; what each setting's share of that cost, and why it failed."""
        self.laps.lap()
        spent_j, failures = [0.0] * len(servers), list[GreenllmError | None]([None] * len(servers))
        for server in dict.fromkeys(servers):
            sharing = [place for place, other in enumerate(servers) if other == server]
            try:
                self._have(server, servers)
            except GreenllmError as error:
                for place in sharing:
                    failures[place] = error
            share_j = self.laps.lap() / len(sharing)
            for place in sharing:
                spent_j[place] += share_j
        return spent_j, failures

    def _have(self, server: Server, wanted: Sequence[Server]) -> None:
        if server in self._running:
            self._running[server] = self._running.pop(server)  # used last
            return
        for other in [one for one in self._running if one not in wanted]:
            if len(self._running) >= self.most:
                self._end(other)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = [*self.options, *options_of(server)]
            url, _ = stack.enter_context(running_server(self.model, folder, *options))
            self._running[server] = url, stack.pop_all()

    async def _ask(
        self, url: str, setting: Setting, part: Sequence[Task], *, is_first: bool
    ) -> list[TaskResult]:
        request: dict[str, Any] = {n: {"method": value} for n, value in setting.request.items()}
        async with connect(url, None, None, 600.0) as model:
            asked = replace(model, settings=request)
            for i in range(min(_WARM_UP, part[0].count()) if is_first else 0):
                await asked.answer(part[0].example(i))
            return [
                await evaluate(asked, task, self.concurrency, lambda done, count: None)
                for task in part
            ]

    def _said(self, trial: Trial) -> Trial:
        if trial.error is not None:
            self.say(f"{trial.setting}: {trial.error.splitlines()[0]}")
        else:
            self.say(
                f"{trial.setting}: quality {trial.quality.value:.3f},"
                f" {trial.joules_per_token * 1e3:.3f} mJ/token, p95 {trial.p95_s:.2f} s"
            )
        return trial


def _trial(
    setting: Setting, results: Sequence[TaskResult], spent_j: float, failure: Exception | None
) -> Trial:
    if failure is not None:
        return _failed(setting, spent_j, failure)
    return replace(trial_of(setting, whole(results)), spent_j=spent_j)


def trial_of(setting: Setting, results: Sequence[TaskResult]) -> Trial:
    """All tasks together: every example counts alike.

    Raises:
        BenchError: joules are unknown: the server has no meter.
    """
    values = [example.score.value for result in results for example in result.examples]
    is_right_or_wrong = all(value in (0, 1) for value in values)
    quality = (
        wilson(round(sum(values)), len(values))
        if is_right_or_wrong
        else bootstrap(values, [1.0] * len(values))
    )
    costs = [cost for result in results for cost in result.costs()]
    joules = [cost.joules for cost in costs if cost.joules is not None]
    tokens = sum(cost.prompt_tokens + cost.completion_tokens for cost in costs)
    if quality is None or len(joules) < len(costs) or not tokens:
        raise BenchError("the server says no joules: settings cannot be compared by them")
    p95_s = max(result.latency_s(0.95) for result in results)
    return Trial(setting, len(values), quality, sum(joules) / tokens, p95_s, 0.0)


def _failed(setting: Setting, spent_j: float, error: Exception) -> Trial:
    return Trial(setting, 1, _NOTHING, math.inf, math.inf, spent_j, str(error))
