"""What tests of runners share: sizes of random models, and the engine's loop around a runner."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

from greenllm.core import Sequence
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.speculation.speculator import Drafted, Speculator

VOCABULARY = 96
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
}


def scheduler_of(
    runner: Any,
    speculator: Speculator | None = None,
    *,
    num_blocks: int | None = None,
    max_batch_tokens: int = 512,
    prefix_cache: bool = True,
) -> Scheduler:
    """A scheduler for up to eight sequences."""
    return Scheduler(
        BlockManager(num_blocks or runner.num_blocks, runner.block_size, prefix_cache=prefix_cache),
        max_num_seqs=8,
        max_batch_tokens=max_batch_tokens,
        clock=time.monotonic,
        num_drafts=(speculator or Speculator({})).num_drafts,
    )


def drive(
    runner: Any,
    sequences: SequenceOf[Sequence],
    speculator: Speculator | None = None,
    scheduler: Scheduler | None = None,
    *,
    stagger: int = 0,
    on_drafted: Callable[[Drafted], None] = lambda drafted: None,
    **how: Any,
) -> Scheduler:
    """Run sequences to their ends, one arriving every `stagger` steps; returns the scheduler.

    `how` is as in `scheduler_of`.
    """
    speculator = speculator or Speculator({})
    scheduler = scheduler or scheduler_of(runner, speculator, **how)
    pending, step = list(sequences), 0
    while pending or scheduler.has_work:
        while pending and step >= stagger * (len(sequences) - len(pending)):
            scheduler.add(pending.pop(0))
        step += 1
        if scheduler.has_work:
            batch = scheduler.schedule()
            runner.copy_blocks(batch.copies)
            batch, done = speculator.draft(batch)
            for drafted in done:
                on_drafted(drafted)
            scheduler.commit(batch, runner.run(batch))
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    return scheduler
