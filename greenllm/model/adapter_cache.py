"""Adapter weights in memory, by digest: the least recently used leave when a budget is exceeded.

Contract: pinned weights stay, also beyond the budget. Not thread-safe: the registry's lock guards
it. Not covered: what runners copy from here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenllm.model.lora import LoraWeights


class WeightCache:
    """Weights by digest, oldest use first."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._weights: OrderedDict[str, LoraWeights] = OrderedDict()
        self._pins: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        """Bytes of everything held."""
        return sum(weights.num_bytes for weights in self._weights.values())

    def __contains__(self, digest: str) -> bool:
        return digest in self._weights

    def get(self, digest: str) -> LoraWeights | None:
        """The weights, which counts as a use."""
        weights = self._weights.get(digest)
        if weights is not None:
            self._weights.move_to_end(digest)
        return weights

    def put(self, weights: LoraWeights) -> None:
        """Hold weights; `evict` comes after they are pinned, if they are to be."""
        self._weights[weights.digest] = weights
        self._weights.move_to_end(weights.digest)

    def pin(self, digest: str) -> None:
        """Keep weights until as many unpins."""
        self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Undo one pin."""
        if not self._pins[digest]:
            raise ValueError(f"adapter weights {digest} were unpinned twice")
        self._pins[digest] -= 1

    def evict(self) -> None:
        """Let go of the least recently used until the budget is kept or the rest is in use."""
        excess = self.num_bytes - self.budget_bytes
        for digest in [digest for digest in self._weights if not self._pins[digest]]:
            if excess <= 0:
                return
            excess -= self._weights.pop(digest).num_bytes

    def drop(self, digest: str) -> None:
        """Let go of weights nobody uses; what is pinned stays."""
        if not self._pins[digest]:
            self._weights.pop(digest, None)
