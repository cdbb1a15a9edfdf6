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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.studies import study
from evals.studies.load import Burst, Server, random_bodies, serve_all
from evals.studies.ratios import Figures, medians, over, paired_ratio
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


@dataclass(frozen=True, slots=True)
class Turn:
    """What one arm's server did in a round."""

    batches: Mapping[int, Figures]
    cold: Burst
    cached: Burst


def turn(server: Server, tokens: int, source: random.Random) -> Turn:
    """Every batch size once, and one prompt cold and cached."""
    batches = {
        batch: server.burst(
            random_bodies(server.model, batch, tokens, source, prompt_tokens=PROMPT_TOKENS)
        ).figures()
        for batch in BATCHES
    }
    body = random_bodies(server.model, 1, 1, source, prompt_tokens=CACHED_TOKENS)
    time.sleep(PAUSE_S)
    cold = server.burst(body)
    time.sleep(PAUSE_S)
    return Turn(batches, cold, server.burst(body))


def _summary(server: Server, turns: Sequence[Turn]) -> dict[str, Any]:
    def ratio(figure: Callable[[Burst], float]) -> dict[str, float]:
        return paired_ratio([figure(t.cached) for t in turns], [figure(t.cold) for t in turns])

    return {
        "start_s": server.start_s,
        "peak_memory_mb": server.peak_memory_mb(),
        "batches": {str(batch): medians([t.batches[batch] for t in turns]) for batch in BATCHES},
        "cached_over_cold_ttft": ratio(lambda burst: burst.wall_s),
        "cached_over_cold_prefill_joules": ratio(lambda burst: burst.total("prefill_joules")),
    }


def _falls(first: Sequence[Turn], turns: Sequence[Turn]) -> dict[str, Any]:
    """Active joules per token of the first arm over another's, round by round."""
    return {
        str(batch): over(
            [turn.batches[batch] for turn in first],
            [turn.batches[batch] for turn in turns],
            "active_joules_per_token",
        )
        for batch in BATCHES
    }


def figures(servers: Mapping[str, Server], found: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    """Every arm, and how far joules fall from the first to it."""
    first, *others = found
    return {
        "arms": {arm: _summary(server, found[arm]) for arm, server in servers.items()},
        "torch_over_arm_active_joules_per_token": {
            arm: _falls(found[first], found[arm]) for arm in others
        },
    }


def main(
    model: study.Model = "bundled",
    rounds: study.Rounds = 5,
    tokens: study.Tokens = 64,
    arms: study.Arms = "",
    name: study.Name = STUDY.name,
) -> None:
    """Measure the runners, interleaved."""
    chosen = study.pick(study.split_names(arms), ARMS, "--arms: no")
    seeds = itertools.count()
    with serve_all(model, {arm: ARMS[arm] for arm in chosen}) as servers:
        turns = study.interleave(
            lambda arm, _: turn(servers[arm], tokens, random.Random(next(seeds))), rounds, chosen
        )
        found = figures(servers, turns)
    STUDY.report({"model": own_name(model), "rounds": rounds, "tokens": tokens, **found}, name)


if __name__ == "__main__":
    STUDY.run(main)
