"""How many replicas: as few as the requests fill, by the joules of a token.

Contract: `replicas_for` is pure. `Scaling` is what Ray Serve's controller calls: it takes more at
once, and gives one up only after `PATIENCE_S` of having had one too many, because a replica costs
joules to start. Knows nothing of Ray but the names in the context it is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

PATIENCE_S = 60.0
STAT = "full_at"


def replicas_for(requests: float, full_at: float, *, least: int, most: int) -> int:
    """Replicas that so many requests fill, within bounds."""
    needed = math.ceil(requests / max(1.0, full_at) - 1e-9)
    return max(least, min(most, needed))


def full_at_of(metrics: Mapping[str, Mapping[Any, float]] | None, default: float) -> float:
    """What the replicas found out about when they are full: the middle of them."""
    told = list((metrics or {}).get(STAT, {}).values())
    return statistics.median(told) if told else default


class Scaling:
    """Ray Serve's autoscaling policy: `(context) -> (replicas, state)`."""

    def __init__(self, full_at: float = 64.0, patience_s: float = PATIENCE_S) -> None:
        self._full_at = full_at
        self._patience_s = patience_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decide; `since_s` in the state is when there was first one too many."""
        wanted = replicas_for(
            context.total_num_requests,
            full_at_of(context.aggregated_metrics, self._full_at),
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
        )
        now_s, target = float(context.current_time), int(context.target_num_replicas)
        if wanted >= target:
            return wanted, {"since_s": None}
        since_s = (context.policy_state or {}).get("since_s")
        if since_s is None or now_s - since_s < self._patience_s:
            return target, {"since_s": now_s if since_s is None else since_s}
        return target - 1, {"since_s": None}
