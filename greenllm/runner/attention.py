"""Packed, paged attention plugged into transformers' attention interface.

All tokens of a step go through the model in one row `[1, num_tokens]`. Each attention layer calls
`PagedAttention.attend` with its queries, keys and values; the keys and values are written to the
layer's slots, and every chunk then attends to its own sequence's slots: decode rows together in a
padded gather, prompt chunks one by one, or on CUDA several side by side.

Covered: grouped-query heads, sliding windows, logit soft-capping, layers on several devices.
Not covered, and refused: attention sinks, additive position biases, cross attention, layers that
attend twice or whose keys come from elsewhere, windows that only the model's masks know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from greenllm.core import Batch, Chunk, GreenllmError
from greenllm.runner.prompts import Prefill, Prompts, padded
from greenllm.runner.prompts import side_by_side as group_prefills

_REFUSED = frozenset({"s_aux", "sinks", "position_bias", "alibi", "head_mask", "cu_seqlens"})


class UnsupportedAttentionError(GreenllmError):
    """The model's attention needs something this runner does not compute."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Key and value dimensions of one attention layer, and the window it was told, if any."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    window: int | None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value."""
        return self.kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(slots=True)
class AttentionPlan:
    """Where the tokens of one step go, as index tensors on one device.

    `slots` [num_tokens] is where new keys are written. Decode rows come first in the packed order:
    `decode_slots` [num_decode, longest], `decode_lens` [num_decode]. Each prompt chunk has its
    packed range, its first position and its sequence's slots. A plan that is recorded must not ask
    the device for anything.
    """

    slots: Tensor
    num_decode: int
    decode_slots: Tensor
    decode_lens: Tensor
    prefills: list[Prefill]
    prompts: Prompts | None = None
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)
    is_recorded: bool = False

    def to(self, device: torch.device) -> AttentionPlan:
        """The same plan on another device."""
        return AttentionPlan(
            self.slots.to(device),
            self.num_decode,
            self.decode_slots.to(device),
            self.decode_lens.to(device),
            [(begin, end, start, slots.to(device)) for begin, end, start, slots in self.prefills],
            None if self.prompts is None else self.prompts.to(device),
        )


def make_plan(chunks: list[Chunk], block_size: int, *, side_by_side: bool = False) -> AttentionPlan:
    """Lay out chunks, which must be ordered single tokens first.

    With `side_by_side` several prompt chunks are computed together; see `prompts`.
    """
    tables = [_context_slots(chunk, block_size) for chunk in chunks]
    slots = [table[chunk.start :] for chunk, table in zip(chunks, tables, strict=True)]
    num_decode = sum(1 for chunk in chunks if chunk.num_tokens == 1)
    lens = torch.tensor([len(table) for table in tables[:num_decode]], dtype=torch.long)
    decode_slots = (
        padded(tables[:num_decode]) if num_decode else torch.zeros(0, 0, dtype=torch.long)
    )
    prefills, begin = [], num_decode
    for chunk, table in zip(chunks[num_decode:], tables[num_decode:], strict=True):
        prefills.append((begin, begin + chunk.num_tokens, chunk.start, table))
        begin += chunk.num_tokens
    prompts = group_prefills(prefills) if side_by_side and len(prefills) > 1 else None
    return AttentionPlan(torch.cat(slots), num_decode, decode_slots, lens, prefills, prompts)


def _context_slots(chunk: Chunk, block_size: int) -> Tensor:
    """Slots of positions 0 .. chunk.end - 1 of the chunk's sequence."""
    num_blocks = -(-chunk.end // block_size)
    blocks = torch.tensor(chunk.seq.block_table[:num_blocks], dtype=torch.long)
    slots = blocks[:, None] * block_size + torch.arange(block_size)
    return slots.flatten()[: chunk.end]


class PagedAttention:
    """Key and value slots of every layer, and the attention over them."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self._pools: dict[int, tuple[Tensor, Tensor]] = {}
        self._plans: dict[torch.device, AttentionPlan] = {}

    def allocate(self, num_slots: int) -> None:
        """Make room for `num_slots` tokens in every layer seen so far."""
        for index, layer in self.layers.items():
            self._pools[index] = (
                _slots(num_slots, layer.key_dim, layer),
                _slots(num_slots, layer.value_dim, layer),
            )

    def copy_blocks(self, copies: Sequence[tuple[int, int]], block_size: int) -> None:
        """Copy blocks (from, to) in every layer, in order."""
        for source, target in copies:
            for pool in chain.from_iterable(self._pools.values()):
                blocks = pool.view(-1, block_size, *pool.shape[1:])
                blocks[target] = blocks[source]

    def use(self, plan: AttentionPlan) -> None:
        """Set the plan of the step that is about to run."""
        self._plans = {plan.slots.device: plan}

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer: query `[1, heads, tokens, dim]` to `[1, tokens, heads, dim]`."""
        _refuse(kwargs, attention_mask)
        scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
        layer = _layer_index(module)
        if layer not in self._pools:
            if layer in self.layers:
                raise UnsupportedAttentionError("a layer attends more than once")
            if not getattr(module, "is_causal", True):
                raise UnsupportedAttentionError("its attention is not causal")
            self.layers[layer] = LayerShape(
                key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device, sliding_window
            )
            probe = _scores(query, key, value, None, scale, softcap)
            return probe.transpose(1, 2), None
        plan = self._plan_on(query.device)
        keys, values = self._pools[layer]
        keys[plan.slots] = key[0].transpose(0, 1)
        values[plan.slots] = value[0].transpose(0, 1)
        parts = _decode(plan, query, keys, values, scale, sliding_window, softcap)
        if plan.prompts is not None:
            parts.append(
                _prompts(plan.prompts, query, keys, values, scale, sliding_window, softcap)
            )
        else:
            for index in range(len(plan.prefills)):
                parts.append(
                    _prefill(plan, index, query, keys, values, scale, sliding_window, softcap)
                )
        return torch.cat(parts, dim=1), None

    def _plan_on(self, device: torch.device) -> AttentionPlan:
        plan = self._plans.get(device)
        if plan is None:
            plan = next(iter(self._plans.values())).to(device)
            self._plans[device] = plan
        return plan


def _slots(num_slots: int, dim: int, layer: LayerShape) -> Tensor:
    return torch.zeros(num_slots, layer.kv_heads, dim, dtype=layer.dtype, device=layer.device)


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise UnsupportedAttentionError(f"{type(module).__name__} has no layer index")
    return index


def _refuse(kwargs: dict[str, Any], attention_mask: Tensor | None) -> None:
    for name, value in kwargs.items():
        if name in _REFUSED and value is not None:
            raise UnsupportedAttentionError(f"attention with {name} is not supported")
    if attention_mask is not None:
        raise UnsupportedAttentionError("the model builds its own attention mask")


def _decode(
    plan: AttentionPlan,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> list[Tensor]:
    """All single-token chunks at once: `[1, num_decode, heads, dim]`.

    Heads that share keys are given as if they were tokens, so that no key is repeated for them.
    """
    if not plan.num_decode:
        return []
    queries = query[0, :, : plan.num_decode].transpose(0, 1)
    rows = queries.reshape(plan.num_decode, keys.shape[1], -1, queries.shape[-1])
    shape = plan.decode_slots.shape
    flat = plan.decode_slots.flatten()
    context_k = keys.index_select(0, flat).view(*shape, *keys.shape[1:]).transpose(1, 2)
    context_v = values.index_select(0, flat).view(*shape, *values.shape[1:]).transpose(1, 2)
    mask = _decode_mask(plan, window)
    out = _scores(rows, context_k, context_v, mask, scale, softcap)
    return [out.flatten(1, 2)[None]]


def _decode_mask(plan: AttentionPlan, window: int | None) -> Tensor | None:
    """Which slots each row sees: `[num_decode, 1, 1, longest]`; None when it is all of them."""
    if (-1, window) not in plan.masks:
        positions = torch.arange(plan.decode_slots.shape[1], device=plan.decode_slots.device)
        seen = positions[None] < plan.decode_lens[:, None]
        if window is not None:
            seen &= positions[None] >= plan.decode_lens[:, None] - window
        is_whole = not plan.is_recorded and bool(seen.all())
        plan.masks[(-1, window)] = None if is_whole else seen[:, None, None]
    return plan.masks[(-1, window)]


def _prefill(
    plan: AttentionPlan,
    index: int,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One prompt chunk: `[1, chunk tokens, heads, dim]`."""
    begin, end, _, slots = plan.prefills[index]
    context_k = keys.index_select(0, slots).transpose(0, 1)[None]
    context_v = values.index_select(0, slots).transpose(0, 1)[None]
    mask = _prefill_mask(plan, index, window)
    out = _scores(query[:, :, begin:end], context_k, context_v, mask, scale, softcap)
    return out.transpose(1, 2)


def _prompts(
    prompts: Prompts,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """All prompt chunks, group by group: `[1, their tokens, heads, dim]`."""
    found = []
    for group in prompts.groups:
        rows, slots = group.rows, group.slots
        heads = (query.shape[1], *rows.shape, query.shape[-1])
        queries = query[0].index_select(1, rows.flatten()).view(heads).transpose(0, 1)
        context_k = keys.index_select(0, slots.flatten()).view(*slots.shape, *keys.shape[1:])
        context_v = values.index_select(0, slots.flatten()).view(*slots.shape, *values.shape[1:])
        context_k, context_v = context_k.transpose(1, 2), context_v.transpose(1, 2)
        out = _scores(queries, context_k, context_v, group.mask(window), scale, softcap)
        found.append(out.transpose(1, 2).flatten(0, 1).index_select(0, group.kept))
    return torch.cat(found).index_select(0, prompts.order)[None]


def _prefill_mask(plan: AttentionPlan, index: int, window: int | None) -> Tensor | None:
    """Which positions each token of a chunk sees: `[1, 1, chunk tokens, context]`."""
    if (index, window) not in plan.masks:
        begin, end, start, slots = plan.prefills[index]
        own = torch.arange(start, start + end - begin, device=slots.device)[:, None]
        positions = torch.arange(len(slots), device=slots.device)[None]
        seen = positions <= own
        if window is not None:
            seen &= positions > own - window
        plan.masks[(index, window)] = seen[None, None]
    return plan.masks[(index, window)]


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Scaled dot-product attention of `[batch, heads, tokens, dim]`, with optional soft-capping."""
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def hidden_window(config: Any, layers: dict[int, LayerShape]) -> int | None:
    """Smallest window or chunk that the model applies in its masks only, unseen by `attend`."""
    told = any(layer.window is not None for layer in layers.values())
    uniform = [] if told else ["sliding_attention"] * len(layers)
    kinds = getattr(config, "layer_types", None) or uniform
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    untold = {kind for i, kind in enumerate(kinds) if i in layers and layers[i].window is None}
    hidden = [window if "sliding_attention" in untold else None]
    hidden.append(chunk if "chunked_attention" in untold else None)
    return min((size for size in hidden if size), default=None)


def order_chunks(batch: Batch) -> list[int]:
    """Indices of the batch's chunks, single tokens first."""
    chunks = batch.chunks
    return sorted(range(len(chunks)), key=lambda i: chunks[i].num_tokens != 1)
