"""FLOPs and bytes of a part of a model in one step, and the kinds of parts.

Contract: values only; what is counted and what is not says `observation`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

Kind = Literal["embedding", "norms", "attention", "MLP", "final norm", "head", "rest"]


@dataclass(frozen=True, slots=True)
class Counts:
    """FLOPs and bytes of one part in one step."""

    flops: int = 0
    masked_flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def moved_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte; None where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else None
