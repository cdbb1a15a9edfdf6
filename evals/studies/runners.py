"""The runners side by side: `python -m evals.studies.runners`.

Question: which runner and precision is fastest and takes the fewest joules? Arms: one real server
for each, all of them kept running, with the same bursts in turn over HTTP; idle servers take no CPU
time. Measure: tokens per second, joules that the servers put into `usage.energy`, cached prompts,
start, memory. Peers are in `evals.studies.peers`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.studies import study
from evals.studies.load import Burst, Server, random_bodies, serve_all
from evals.studies.ratios import medians, over, paired_ratio
from greenllm.model.options import own_name

STUDY = study.Study("runners")
ARMS: Mapping[str, tuple[str, ...]] = {
    "torch float32": ("--runner", "torch"),
    "openvino float32": ("--runner", "openvino"),
    "openvino int8": ("--runner", "openvino", "--quantize", "int8"),
    "openvino int4": ("--runner", "openvino", "--quantize", "int4"),
    "openvino int8 eco": ("--runner", "openvino", "--quantize", "int8", "--threads", "eco"),
    "openvino int8 2 threads": ("--runner", "openvino", "--quantize", "int8", "--threads", "2"),
}
BATCHES = (1, 8, 32)
PROMPT_TOKENS = 32
CACHED_TOKENS = 256
PAUSE_S = 0.05


@dataclass(slots=True)
class Seen:
    """What one arm's server did, round by round."""

    batches: dict[int, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    cold: list[Burst] = field(default_factory=list)
    cached: list[Burst] = field(default_factory=list)


def turn(server: Server, seen: Seen, tokens: int, seeds: itertools.count[int]) -> None:
    """Every batch size once, and one prompt cold and cached."""
    for batch in BATCHES:
        source = random.Random(next(seeds))
        bodies = random_bodies(server.model, batch, tokens, source, prompt_tokens=PROMPT_TOKENS)
        seen.batches[batch].append(server.burst(bodies).figures())
    source = random.Random(next(seeds))
    body = random_bodies(server.model, 1, 1, source, prompt_tokens=CACHED_TOKENS)
    for kept in (seen.cold, seen.cached):
        time.sleep(PAUSE_S)
        kept.append(server.burst(body))


def _summary(server: Server, seen: Seen) -> dict[str, Any]:
    def ratio(figure: Any) -> dict[str, float]:
        return paired_ratio(list(map(figure, seen.cached)), list(map(figure, seen.cold)))

    return {
        "start_s": server.start_s,
        "peak_memory_mb": server.peak_memory_mb(),
        "batches": {str(batch): medians(turns) for batch, turns in seen.batches.items()},
        "cached_over_cold_ttft": ratio(lambda burst: burst.wall_s),
        "cached_over_cold_prefill_joules": ratio(lambda burst: burst.total("prefill_joules")),
    }


def _falls(seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Active joules per token of the first arm over each other's, round by round."""
    first, *others = seen
    return {
        arm: {
            str(batch): over(seen[first].batches[batch], turns, "active_joules_per_token")
            for batch, turns in seen[arm].batches.items()
        }
        for arm in others
    }


def figures(servers: Mapping[str, Server], seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Every arm, and how far joules fall from the first to it."""
    return {
        "arms": {arm: _summary(server, seen[arm]) for arm, server in servers.items()},
        "torch_over_arm_active_joules_per_token": _falls(seen),
    }


def main(
    model: study.Model = "bundled",
    rounds: study.Rounds = 5,
    tokens: study.Tokens = 64,
    arms: study.Arms = "",
    name: study.Name = STUDY.name,
) -> None:
    """Measure the runners, interleaved."""
    chosen: Sequence[str] = study.pick(study.split_names(arms), ARMS, "--arms: no")
    seeds, seen = itertools.count(), {arm: Seen() for arm in chosen}
    with serve_all(model, {arm: ARMS[arm] for arm in chosen}) as servers:
        for number in study.each_round(rounds):
            for arm in study.rotate(chosen, number):
                turn(servers[arm], seen[arm], tokens, seeds)
        found = figures(servers, seen)
    STUDY.report({"model": own_name(model), "rounds": rounds, "tokens": tokens, **found}, name)


if __name__ == "__main__":
    STUDY.run(main)
