"""Steps of fixed shape, recorded as CUDA graphs and replayed: a launch is paid for once.

A small model's step is hundreds of short kernels, and launching them from Python takes longer than
running them. So a step in which every chunk is short is laid out as rows of one token each, which
see their sequence up to themselves; rows and blocks are padded to a few sizes, and each size is
recorded when it first occurs (which takes some ten steps' time, on whoever is in that batch).

Contract: the logits are those of the runner's own step up to rounding. What cannot be recorded runs
as it is, with one warning for all of them.
Not covered: prompts (chunks longer than `MOST_TOKENS`), rows with adapters, several devices.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenllm.core import MOST_DRAFTED, Chunk
from greenllm.runner.attention import AttentionPlan, PagedAttention

log = logging.getLogger(__name__)

# A token and its draft tokens.
MOST_TOKENS = MOST_DRAFTED + 1
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_FEWEST_BLOCKS = 8
_REHEARSALS = 2


@dataclass(frozen=True, slots=True)
class Size:
    """Rows of a step, and blocks that each may see."""

    rows: int
    blocks: int


def size_of(chunks: Sequence[Chunk], block_size: int) -> Size | None:
    """The smallest size that holds the chunks; None where none does."""
    rows = sum(chunk.num_tokens for chunk in chunks)
    if not rows or rows > ROWS[-1] or any(chunk.num_tokens > MOST_TOKENS for chunk in chunks):
        return None
    needed = max(-(-chunk.end // block_size) for chunk in chunks)
    blocks = _FEWEST_BLOCKS
    while blocks < needed:
        blocks *= 2
    return Size(ROWS[bisect_left(ROWS, rows)], blocks)


def lay_out(chunks: Sequence[Chunk], size: Size, block_size: int, spare_block: int) -> Tensor:
    """One row per token, `[rows, 2 + blocks]`: its id, its position, its sequence's blocks.

    Rows that are left over write to the spare block, which nobody reads.
    """
    rows: list[list[int]] = []
    for chunk in chunks:
        table = chunk.seq.block_table[: -(-chunk.end // block_size)]
        table = table + [table[0]] * (size.blocks - len(table))
        rows += [[t, chunk.start + i, *table] for i, t in enumerate(chunk.token_ids)]
    rows += [[0, 0] + [spare_block] * size.blocks] * (size.rows - len(rows))
    return torch.tensor(rows)


def forward(
    model: PreTrainedModel, attention: PagedAttention, inputs: Tensor, block_size: int
) -> Tensor:
    """Logits `[rows, vocabulary]` of rows that `lay_out` made, without asking the device anything.

    What a row does not see is its sequence's first slot: see `attention.make_plan`.
    """
    ids, positions, tables = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
    offsets = torch.arange(block_size, device=inputs.device)
    context = (tables[:, :, None] * block_size + offsets).flatten(1)
    slots = context.gather(1, positions[:, None])[:, 0]
    places = torch.arange(context.shape[1], device=inputs.device)
    context = torch.where(places[None] <= positions[:, None], context, context[:, :1])
    attention.use(AttentionPlan(slots, len(ids), context, positions + 1, [], is_recorded=True))
    output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


@dataclass(frozen=True, slots=True)
class _Recording:
    """A graph, where it reads and where it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    logits: Tensor


class RecordedSteps:
    """Graphs of one runner's models by size; made with the runner's attention and cache."""

    def __init__(self, attention: PagedAttention, block_size: int, spare_block: int) -> None:
        self._attention = attention
        self._block_size = block_size
        self._spare_block = spare_block
        self._recordings: dict[tuple[int, Size], _Recording] = {}
        self._pool: Any = None
        self._works = True

    def logits(self, model: PreTrainedModel, chunks: Sequence[Chunk]) -> Tensor | None:
        """Logits `[tokens, vocabulary]`, good until the next step; None if it cannot be done so.

        `model` has to outlive this object: it is known by its identity.
        """
        size = size_of(chunks, self._block_size)
        if size is None or not self._works:
            return None
        inputs = lay_out(chunks, size, self._block_size, self._spare_block)
        recording = self._recordings.get((id(model), size)) or self._record(model, size, inputs)
        if recording is None:
            return None
        recording.inputs.copy_(inputs)
        recording.graph.replay()
        return recording.logits[: sum(chunk.num_tokens for chunk in chunks)]

    def _record(self, model: PreTrainedModel, size: Size, inputs: Tensor) -> _Recording | None:
        placed = inputs.to(next(iter(self._attention.layers.values())).device)

        def step() -> Tensor:
            return forward(model, self._attention, placed, self._block_size)

        try:
            graph, logits = self._captured(step)
        except RuntimeError as error:
            self._works = False
            reason = " ".join(str(error).split())
            log.warning("steps cannot be recorded, every kernel is launched by itself: %s", reason)
            return None
        self._recordings[id(model), size] = _Recording(graph, placed, logits)
        return self._recordings[id(model), size]

    def _captured(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a step that has been rehearsed on a stream of its own, as PyTorch asks."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_REHEARSALS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()
        self._pool = self._pool or graph.pool()
        return graph, logits
