"""What a part of a model has to compute and to move in one step, by formula.

Contract: FLOPs are those of matrix products, two for each multiplication with its addition, as
`torch.utils.flop_counter` counts: every linear layer, and in attention queries times keys and
weights times values. Attention is counted over all keys that its kernel is given; `masked_flops`
of them fall on keys that causality hides, which kernels may skip and some do.

Bytes are what the step cannot do without, moved once: weights as they are stored (of embeddings
the rows that are looked up; a head that is tied to them reads the whole table), keys and values,
and what goes into and out of every module that has none below it.

Not counted: norms, activations, rotary positions, softmax and sampling in FLOPs; caches of the
processor, copies (keys and values that are put together or repeated, weights written out by
dequantizing) and what attention keeps in between in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        return Counts(
            self.flops + other.flops,
            self.masked_flops + other.masked_flops,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
        )

    @property
    def moved_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte; None where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One attention layer in one step; `past` keys of each sequence were there before it."""

    batch: int
    new_tokens: int
    past: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    element_bytes: int

    @property
    def keys(self) -> int:
        """Keys of each sequence in the step."""
        return self.past + self.new_tokens


def linear_flops(rows: int, in_features: int, out_features: int) -> int:
    """FLOPs of a linear layer on so many tokens."""
    return 2 * rows * in_features * out_features


def attention_counts(shape: AttentionShape) -> Counts:
    """Scores and values of all heads over all keys; keys and values read, and new ones written."""
    flops_per_pair = 2 * shape.heads * (shape.key_dim + shape.value_dim)
    hidden_pairs = shape.new_tokens * (shape.new_tokens - 1) // 2
    bytes_per_token = shape.kv_heads * (shape.key_dim + shape.value_dim) * shape.element_bytes
    return Counts(
        flops=shape.batch * flops_per_pair * shape.new_tokens * shape.keys,
        masked_flops=shape.batch * flops_per_pair * hidden_pairs,
        kv_bytes=shape.batch * bytes_per_token * (shape.keys + shape.new_tokens),
    )
