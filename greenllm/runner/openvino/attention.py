"""The one place that touches OpenVINO's paged attention operation.

The operation is internal to OpenVINO and changes between minor versions, which is why the version
is pinned in pyproject.toml and `selfcheck` compares a tiny graph with the torch runner before this
is trusted.

It reads queries, keys and values `[tokens, heads * head_dim]`, writes the keys and values of the
step into blocks of the caches, and attends each sequence's tokens to its blocks, causally.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from openvino import Node, Output, opset13
from openvino.op import _PagedAttentionExtension


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The ragged batch as graph inputs, all int32.

    For sequences s: `past_lens` [s] tokens computed before, `subsequence_begins` [s + 1] into the
    step's tokens, `block_indices` all blocks of all sequences, `block_indices_begins` [s + 1] into
    them, `max_context_len` [] the longest context.
    """

    past_lens: Output
    subsequence_begins: Output
    block_indices: Output
    block_indices_begins: Output
    max_context_len: Output


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one attention layer; `window` 0 sees everything."""

    num_kv_heads: int
    head_dim: int
    window: int


def paged_attention(
    query: Output,
    key: Output,
    value: Output,
    caches: tuple[Node, Node],
    step: StepInputs,
    heads: HeadShape,
) -> Output:
    """Attention output `[tokens, heads * head_dim]`. What the operation offers beyond is off."""
    none_i32, none_f32 = _empty(np.int32), _empty(np.float32)
    zero = opset13.constant(np.array(0, np.int32))
    operation = _PagedAttentionExtension(
        [
            query,
            key,
            value,
            caches[0].output(0),
            caches[1].output(0),
            step.past_lens,
            step.subsequence_begins,
            step.block_indices,
            step.block_indices_begins,
            opset13.constant(np.array(heads.head_dim**-0.5, np.float32)).output(0),
            opset13.constant(np.array(heads.window, np.int32)).output(0),
            none_f32,  # ALiBi slopes
            step.max_context_len,
            none_i32,  # score aggregation window
            none_i32,  # rotated blocks, their deltas and table
            none_i32,
            none_f32,
            none_f32,  # sparse attention: threshold, block size, stride
            zero.output(0),
            zero.output(0),
            none_f32,  # sinks
            zero.output(0),  # cache eviction: start, sizes, diversity sets
            none_i32,
            none_i32,
            none_i32,
            none_i32,  # token types
            _empty(np.uint8),  # query-to-query bias
            none_i32,
        ]
    )
    info = operation.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = heads.num_kv_heads
    info["k_head_size"] = info["v_head_size"] = heads.head_dim
    return operation.output(0)


def _empty(dtype: type[np.generic]) -> Output:
    return opset13.constant(np.zeros(0, dtype)).output(0)
