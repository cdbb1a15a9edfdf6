"""`greenllm compress`: a smaller model, what it cost, what it is worth.

Contract: real servers score both models in turns; the report says whether the smaller one is
green, that is, whether a right answer costs fewer joules at enough of the quality. What is not is
written all the same, and called what it is.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.basis import sum_of
from evals.compared import Scored, compare, require_accuracies
from evals.tasks.generated.questions import generated_tasks
from evals.tasks.registry import find_tasks
from finetune.bill.phases import PhaseAccount
from finetune.commands.finetune import progress_bar, shown_on
from finetune.compressing.config import CompressConfig
from finetune.contention import bound_spinning
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.carbon.policy import intensity_source
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.scope import Scope
from greenllm.scorecard.origin import command_line, machine_name

_PACKAGES = ("greenllm", "torch", "transformers", "peft", "trl")
console = Console(stderr=True, highlight=False, emoji=False)


def compress(config: CompressConfig) -> None:
    """Make the smaller model, score both, and write the report.

    Raises:
        GreenllmError: an option is wrong, or something could not be read or written.
    """
    if config.folder.exists():
        raise ConfigError(
            f"--output {config.folder} is there already; name another folder", "output"
        )
    bound_spinning()
    logging.getLogger("bitsandbytes").setLevel("ERROR")  # it misses a kernel nobody asked for
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    tasks, began = _tasks(config), datetime.now(UTC).isoformat(timespec="seconds")
    clock = CpuClock(tree_of=os.getpid())  # with servers that score
    meter, _ = open_meter(config, Scope(clock, devices=config.gpus))
    account = PhaseAccount(meter)
    with console.status("importing torch"):
        making = importlib.import_module("finetune.compressing.making")
    config.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.folder.parent, prefix=".compress-") as folder:
        work = Path(folder)
        with account.during("compressing"):
            source = making.read_source(config, work)
            raw, facts = making.make(config, source, work, _say)
        source = replace(source, model=None)  # healing loads it again, as a teacher
        with progress_bar() as bar:
            healer = making.Healer(config, account, _grams(config), shown_on(bar), _say)
            found, healed = healer.heal(raw, source.recipe.data, work)
        with account.during("saving"):
            making.write(found, source, work, config.folder)
    facts["healing"] = None if healed is None else healed["training"]["losses"][-1]
    made = _Made(_costs(account), account.spent().duration_s, facts, began)
    try:
        scores = _score(config, tasks, account)
    except GreenllmError as error:
        raise GreenllmError(f"{config.folder} is whole, but was not scored: {error}") from error
    _write(config, scores, made, account)


@dataclass(frozen=True, slots=True)
class _Made:
    """What making the smaller model took, before it was scored."""

    by_phase: dict[str, float | None]
    duration_s: float
    facts: dict[str, Any]
    began: str


def _tasks(config: CompressConfig) -> list[Any]:
    names = [name.strip() for name in config.tasks.split(",") if name.strip()]
    tasks = find_tasks(names, generated_tasks(), limit=config.limit, shots=0, seed=config.seed)
    require_accuracies(tasks)
    return list(tasks)


def _grams(config: CompressConfig) -> Any:
    report = importlib.import_module("finetune.bill.report")
    return report.Grams(intensity_source(config).intensity(time.time()), config.pue, None)


def _costs(account: PhaseAccount) -> dict[str, float | None]:
    account.read()
    return {
        phase: energy.total_j if account.is_known else None
        for phase, energy in account.by_phase().items()
    }


def _score(config: CompressConfig, tasks: list[Any], account: PhaseAccount) -> dict[str, Scored]:
    """Both models, each behind a server of its own."""
    from evals.servers import running_server

    models = {"before": config.model, "after": str(config.folder)}
    with account.during("evaluation"), ExitStack() as stack:
        urls = {}
        for name, model in models.items():
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # Every round asks the same; both sides and the bill are counted alike; what a server
            # finds out about threads when it starts must not differ between the two.
            threads = str(config.threads or os.cpu_count() or 1)
            options = ["--no-prefix-cache", "--meter", config.meter, "--threads", threads]
            options += shlex.split(config.serve)
            urls[name], _ = stack.enter_context(running_server(model, data, *options))
        return asyncio.run(compare(urls, tasks, config.rounds, config.concurrency, _say))


def identity_of(config: CompressConfig, words: Sequence[str], began: str) -> dict[str, Any]:
    """What was made, of what, when and where."""
    return {
        "base": config.model,
        "method": config.method,
        "command": command_line(words),
        "began": began,
        "machine": machine_name(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _write(
    config: CompressConfig,
    scores: dict[str, Scored],
    made: _Made,
    account: PhaseAccount,
) -> None:
    report = importlib.import_module("finetune.compressing.report")
    total_j, all_j = (sum_of(list(f.values())) for f in (made.by_phase, _costs(account)))
    scoring_j = None if all_j is None or total_j is None else all_j - total_j
    meter = account.meter
    uncertainty = meter.uncertainty if account.is_known else None
    costs = report.Costs(
        total_j,
        scoring_j,
        made.by_phase,
        meter.method,
        meter.measured,
        uncertainty,
        made.duration_s,
        tuple(sorted({name for one in scores.values() for name in one.energy["methods"]})),
    )
    sides = tuple(_side(report, name, scores[name], config) for name in ("before", "after"))
    identity = identity_of(config, sys.argv[1:], made.began)
    found = report.build(identity, sides, costs, _grams(config), config.quality_share, made.facts)
    folder = config.folder
    (folder / "compression.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = report.markdown(found)
    (folder / "README.md").write_text(page, encoding="utf-8")
    print(page)
    _say(f"Serve it: greenllm serve {folder}")


def _side(report: Any, name: str, scored: Scored, config: CompressConfig) -> Any:
    model = config.model if name == "before" else str(config.folder)
    parameters, weight_bytes = report.sizes_of(model)
    return report.Side(
        parameters, weight_bytes, scored.solved, scored.joules_per_answer,
        scored.joules_per_token, scored.seconds_per_token, scored.p95_s, scored.by_task,
    )  # fmt: skip


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
