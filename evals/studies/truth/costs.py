"""What simulated steps cost: laws that the account does not know.

Contract: a request's work in a step is a row of counts (`Work`). A law turns the sum of such rows
into joules; a request's true share is its Shapley value: in closed form where the law is additive,
else by enumeration or from sampled orders. Nothing here is shared with `greenllm.energy`: also
FLOPs and bytes are counted anew, and not in quite the same way.

Not covered: noise (see `processor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from evals.studies.truth.shapley import Floats, values_of
from greenllm.core import Chunk


class Work(IntEnum):
    """Columns of a row of counts."""

    REQUESTS = 0
    PROMPTS = 1
    ROWS = 2
    GFLOP = 3
    KV_MB = 4


# A model of a billion parameters.
BODY_PARAMETERS = 900_000_000
HEAD_PARAMETERS = 130_000_000
LAYERS = 16
WIDTH = 2048
KV_BYTES = 65_536
# Small matrices are slow: a FLOP of an adapter costs as much as three of the base.
_ADAPTER_FACTOR = 3


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence runs in a step: `num_tokens` tokens from place `start` on."""

    owner: str
    start: int
    num_tokens: int
    num_logits: int
    is_prompt: bool = False
    adapter_parameters: int = 0

    @classmethod
    def of(cls, chunk: Chunk) -> Part:
        """The part that a chunk is."""
        adapter = chunk.seq.request.adapter
        return cls(
            owner=chunk.seq.request.request_id,
            start=chunk.start,
            num_tokens=chunk.num_tokens,
            num_logits=1 + len(chunk.draft) if chunk.samples else 0,
            is_prompt=chunk.start < chunk.seq.prompt_len,
            adapter_parameters=0 if adapter is None else adapter.num_parameters,
        )

    def counts(self) -> list[float]:
        """Its work, without the request it belongs to."""
        seen = self.num_tokens * self.start + self.num_tokens * (self.num_tokens + 1) / 2
        flop = 2.0 * BODY_PARAMETERS * self.num_tokens + 2.0 * HEAD_PARAMETERS * self.num_logits
        flop += 4.0 * LAYERS * WIDTH * seen
        flop += 2.0 * _ADAPTER_FACTOR * self.adapter_parameters * self.num_tokens
        kv_bytes = KV_BYTES * (self.start + self.num_tokens)
        return [0.0, float(self.is_prompt), float(self.num_tokens), flop / 1e9, kv_bytes / 1e6]


def work_of(parts: Iterable[Part]) -> dict[str, Floats]:
    """A row of counts for each request."""
    rows: dict[str, Floats] = {}
    for part in parts:
        row = rows.setdefault(part.owner, np.array([1.0, 0, 0, 0, 0]))
        row += part.counts()
    return rows


@dataclass(frozen=True, slots=True)
class Law:
    """Joules of a step: so many for the step, some for each count, and what does not add up."""

    step_j: float
    each_j: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    beside: Callable[[Floats], Floats] | None = None

    def joules(self, total: Floats) -> float:
        """Active joules of the whole step."""
        beside_j = 0.0 if self.beside is None else float(self.beside(total))
        return self.step_j + float(total @ self.each_j) + beside_j

    def shares(self, work: Floats, source: np.random.Generator) -> Floats:
        """The Shapley values: a row of work for each request, a value for each row."""
        shares: Floats = self.step_j / len(work) + work @ np.array(self.each_j)
        if self.beside is not None:
            shares = shares + values_of(self.beside, work, source)
        return shares


def roofline(work: Floats) -> Floats:
    """What takes longer: arithmetic, or reading weights and keys."""
    arithmetic = 0.02 * work[..., Work.ROWS] + 0.016 * work[..., Work.GFLOP]
    memory = 2.2 * (work[..., Work.REQUESTS] > 0) + 0.003 * work[..., Work.KV_MB]
    return np.maximum(arithmetic, memory)


def tiles(work: Floats, rows: int = 16) -> Floats:
    """Kernels that compute so many rows, wanted or not."""
    return np.asarray(0.045 * rows * np.ceil(work[..., Work.ROWS] / rows))


def concave(work: Floats) -> Floats:
    """The more rows, the cheaper each."""
    return np.asarray(0.5 * work[..., Work.ROWS] ** 0.7)


LAWS: Mapping[str, Law] = {
    "additive": Law(2.5, (0.0, 0.0, 0.02, 0.01, 0.002)),
    "prompts": Law(2.5, (0.0, 0.8, 0.02, 0.01, 0.002)),
    "roofline": Law(0.4, beside=roofline),
    "tiles8": Law(2.0, (0.0, 0.0, 0.0, 0.0, 0.002), lambda work: tiles(work, 8)),
    "tiles16": Law(2.0, (0.0, 0.0, 0.0, 0.0, 0.002), tiles),
    "concave": Law(1.0, (0.0, 0.0, 0.0, 0.0, 0.002), concave),
}
