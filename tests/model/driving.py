"""What tests of runners share: small random models, and the engine's loop around a runner."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from greenllm.core import Request, SamplingParams, Sequence, sequences_of
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.model.loader import load_model
from greenllm.model.options import LoadOptions
from greenllm.runner.attention import PagedAttention
from greenllm.runner.base import Runner
from greenllm.runner.torch import TorchRunner, load_torch_runner
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


def save(config: Any, folder: Path, seed: int = 0) -> str:
    """A model of random weights, saved; its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return str(folder)


def load(
    folder: str | Path,
    options: LoadOptions | None = None,
    *,
    block_size: int = 4,
    kv_cache_bytes: int = 2**22,
) -> TorchRunner:
    """A runner over a folder."""
    return load_torch_runner(
        str(folder),
        options or LoadOptions(),
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        max_num_seqs=8,
    )


def assemble(folder: str | Path, block_size: int = 8) -> tuple[TorchRunner, Any, PagedAttention]:
    """A runner, with its model and its attention."""
    attention = PagedAttention()
    key = f"paged_{id(attention)}"
    AttentionInterface.register(key, attention.attend)
    loaded = load_model(str(folder), LoadOptions(attention=key, device="cpu"))
    runner = TorchRunner(
        loaded, attention, block_size=block_size, kv_cache_bytes=2**25, max_num_seqs=8
    )
    return runner, loaded.model, attention


def ask(
    runner: Runner,
    prompt: SequenceOf[int],
    params: SamplingParams,
    name: str = "request",
) -> list[Sequence]:
    """The sequences of a request."""
    request = Request(name, (tuple(prompt),), params, model="")
    info = runner.info
    return sequences_of(request, eos_token_ids=info.eos_token_ids, max_len=info.context_length)


def answers(
    runner: Runner,
    prompts: SequenceOf[SequenceOf[int]],
    max_tokens: int,
    **how: Any,
) -> list[list[int]]:
    """Greedy answers of the engine; `how` is as in `drive`."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    sequences = [ask(runner, prompt, params)[0] for prompt in prompts]
    drive(runner, sequences, **how)
    return [seq.token_ids[seq.prompt_len :] for seq in sequences]


def generate(model: Any, prompts: SequenceOf[SequenceOf[int]], max_tokens: int) -> list[list[int]]:
    """Greedy answers of transformers, one prompt at a time."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
        found.append(output[0, len(prompt) :].tolist())
    return found


def random_prompts(vocab_size: int, lengths: SequenceOf[int], seed: int = 1) -> list[list[int]]:
    """Random ids."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=source).tolist() for n in lengths]
