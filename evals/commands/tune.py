"""`greenllm tune`: which settings need the fewest joules per token here, at what quality.

Contract: real servers answer real tasks; what was chosen is written as a file for
`greenllm serve --config`. The joules of the search, starting servers included, are counted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from rich.console import Console

from evals.tasks.base import Task
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from evals.tuning.config import TuneConfig
from evals.tuning.report import as_dict, draw, markdown, toml
from evals.tuning.search import Search, SearchLimits, Trial
from evals.tuning.servers import Laps, ServerBench
from evals.tuning.space import Space, first_of, parse_space
from greenllm.config import ConfigError
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.protocol import Meter
from greenllm.energy.meters.scope import Scope
from greenllm.places import require_fresh

console = Console(stderr=True, highlight=False, emoji=False)


def tune(config: TuneConfig) -> None:
    """Search, print and write.

    Raises:
        GreenllmError: an option is wrong, or no setting keeps the limits.
    """
    space = parse_space(config.space)
    make = _TaskMaker(config)
    require_fresh(config.output)
    options = ["--meter", config.meter]
    if "prefix_cache" not in space:
        # The same questions come again and again: who asks later would find them computed.
        options.append("--no-prefix-cache")
    options += ["--draft-model", config.draft_model] if config.draft_model else []
    laps = Laps(_meter(config))
    bench = ServerBench(config.model, make, config.concurrency, laps, options, _say, config.servers)
    search = Search(bench, _limits(config), _say)
    with closing(bench):
        best, first = _search(config, space, search)
    found = as_dict(config.model, best, first, search.trials, search.stopped_by)
    _write(config, best, found)


def _search(config: TuneConfig, space: Space, search: Search) -> tuple[Trial, Trial | None]:
    """The best setting, and the first where the quality floor is a share of its own."""
    first: Trial | None = None
    if config.quality_floor is None:
        (first,) = search.bench.measure([first_of(space)], config.many)
        if first.error is not None:
            raise ConfigError(f"the first setting, {first.setting}, failed: {first.error}")
        search.trials.append(first)
        floor = config.quality_share * first.quality.value
        search.limits = replace(search.limits, quality_floor=floor)
    if config.exhaustive:
        return search.exhaust(space, config.many), first
    return search.run(space, config.few, config.many), first


class _TaskMaker:
    """Tasks of so many examples together."""

    def __init__(self, config: TuneConfig) -> None:
        self._config = config
        self._names = [name.strip() for name in config.tasks.split(",") if name.strip()]
        for task in self(1):
            if task.measure != "accuracy":
                text = f"--tasks {task.name}: settings are compared by accuracy"
                raise ConfigError(text, "tasks")

    def __call__(self, num_examples: int) -> Sequence[Task]:
        limit = math.ceil(num_examples / max(1, len(self._names)))
        return find_tasks(
            self._names, generated_tasks(), limit=limit, shots=0, seed=self._config.seed
        )


def _limits(config: TuneConfig) -> SearchLimits:
    budget_j = None if config.budget_wh is None else config.budget_wh * 3600
    return SearchLimits(config.slowest_s, config.quality_floor or 0.0, budget_j)


def _meter(config: TuneConfig) -> Meter:
    # Servers come and go below this process; all of them are the search's.
    meter, first = open_meter(config, Scope(CpuClock(tree_of=os.getpid())))
    if not first.joules:
        raise ConfigError("no meter works here, so settings cannot be compared by joules", "meter")
    return meter


def _write(config: TuneConfig, best: Trial, found: dict[str, object]) -> None:
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    text = toml(config.model, best, config.draft_model)
    (folder / "serve.toml").write_text(text, encoding="utf-8")
    (folder / "tuning.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = markdown(found)
    (folder / "tuning.md").write_text(page, encoding="utf-8")
    draw(found, folder / "tuning.svg")
    print(page)
    _say(f"\nServe it: greenllm serve --config {folder / 'serve.toml'}")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
