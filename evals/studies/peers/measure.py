"""One arm's turn: start its server, warm up, send every load, stop; rounds of all arms, in turn.

Contract: in each round every arm gets the same prompts. An arm that cannot run says why, in place
of figures, and the others go on. Order rotates by one place each round. A figure is the median over
the rounds in which every request of its load succeeded; with one failure the whole load is left out
of that round, because a server that drops requests looks fast.

Not covered: differences between rounds that are not noise.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evals.load.client import LoadTarget
from evals.load.drive import Load, measure
from evals.load.plan import even_shots
from evals.servers import free_port
from evals.studies.peers.arms import MODEL, Arm, Place
from evals.studies.peers.servers import serving
from evals.studies.peers.words import VOCABULARY, text_of
from greenllm.core import GreenllmError

PREFILL = "prefill"
APART = 1_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What every arm gets."""

    concurrency: tuple[int, ...]
    requests: int
    prompt_tokens: int
    max_tokens: int
    prefill_tokens: int
    prefill_requests: int
    threads: int
    cores: tuple[int, ...]
    timeout_s: float

    @property
    def context(self) -> int:
        """Room that a sequence needs, in steps of 256."""
        longest = max(self.prompt_tokens + self.max_tokens, self.prefill_tokens + 1)
        return -(-longest // 256) * 256

    def loads(self) -> Iterator[Load]:
        """The prefill, then each concurrency with at least two waves of requests."""
        first = even_shots(self.prefill_tokens, 1, first=APART)
        yield Load(PREFILL, first, 1, self.prefill_requests)
        for i, level in enumerate(self.concurrency):
            shots = even_shots(self.prompt_tokens, self.max_tokens, first=(i + 2) * APART)
            yield Load(str(level), shots, level, max(self.requests, 2 * level))


def take_turn(arm: Arm, plan: Plan, envs: Path, data: Path, seed: int) -> dict[str, Any]:
    """Figures of each load, or `failure`."""
    missing = arm.missing(envs)
    if missing:
        return {"failure": f"not installed: {', '.join(missing)} missing"}
    place = Place(
        envs=envs,
        port=free_port(),
        threads=plan.threads,
        sequences=max(plan.concurrency),
        context=plan.context,
        data=data / arm.name,
    )
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(plan.threads))
    environment = {"HF_HUB_OFFLINE": "1", **threads, **arm.environment(place)}
    place.data.mkdir(exist_ok=True)
    started_s = time.monotonic()
    try:
        with serving(arm.command(place), environment, place.port, set(plan.cores)) as (
            url,
            listed,
            pid,
        ):
            model = str(place.models / MODEL) if arm.named_by_path else listed
            ready_s = time.monotonic() - started_s
            target = _target(arm, url, model, plan, seed)
            return {"ready_s": ready_s, "loads": asyncio.run(_loads(target, plan, pid))}
    except GreenllmError as error:
        return {"failure": str(error)}


def _target(arm: Arm, url: str, model: str, plan: Plan, seed: int) -> LoadTarget:
    return LoadTarget(
        url=url,
        model=model,
        vocabulary=VOCABULARY - 1,
        seed=seed,
        timeout_s=plan.timeout_s,
        prompts_as_text=arm.text_prompts,
        ends_with_done=arm.ends_with_done,
        never_send=arm.never_send,
        prompt_text=text_of,
    )


async def _loads(target: LoadTarget, plan: Plan, pid: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for load in plan.loads():
        warm = Load(
            load.name, even_shots(plan.prompt_tokens, 8), load.concurrency, load.concurrency
        )
        await warm.send(replace(target, seed=-1 - target.seed - (load.concurrency or 0)))
        found[load.name] = asdict(await measure(target, load, pid))
    return found


def figures_of(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a load that are compared."""
    summary, seen = result["summary"], result["footprint"] or {}
    return {
        "tokens_per_s": summary["tokens_per_s"],
        "tokens_per_cpu_s": result["tokens_per_cpu_s"],
        "prompt_tokens_per_s": summary["prompt_tokens_per_s"],
        "ttft_p50_s": (summary["ttft_s"] or {}).get("p50"),
        "tpot_p50_s": (summary["tpot_s"] or {}).get("p50"),
        "peak_bytes": seen.get("peak_bytes"),
        "joules_per_token": (summary["energy"] or {}).get("joules_per_token"),
        "client_cpu_s": result["client_cpu_s"],
    }


def medians(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per load: medians over the rounds without a failure, how many those were, what failed."""
    loads: dict[str, Any] = {}
    for load in {load: None for turn in turns for load in turn.get("loads", {})}:
        results = [turn["loads"][load] for turn in turns if load in turn.get("loads", {})]
        whole = [figures_of(r) for r in results if not r["summary"]["failed"]]
        failures = sorted({f for r in results for f in r["summary"]["failures"]})
        loads[load] = {
            "rounds": len(whole),
            "failures": failures,
            **{name: _median([one[name] for one in whole]) for name in figures_of(results[0])},
        }
    return {"loads": loads, "failures": sorted({t["failure"] for t in turns if "failure" in t})}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
