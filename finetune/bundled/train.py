"""Train the bundled model from nothing: `python -m finetune.bundled.train --minutes 40`.

Contract: needs no network and no data but what `tasks` generates; writes a folder that
transformers loads, and a checkpoint every few minutes so that a killed run is not lost. The same
seed gives the same data; with a time budget the number of steps depends on the machine. Not
covered: resuming a run, several devices, and mixed precision.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.bundled.packing import Batch, make_batch, pack_rows
from finetune.bundled.report import (
    DEFAULT_FOLDER,
    Effort,
    Trained,
    cost,
    quality,
    save_model,
    write_report,
)
from finetune.bundled.tasks import training_examples
from finetune.bundled.tokenizer import VOCABULARY, Encoded, encode, save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    output: Path
    budget_s: float
    max_tokens: int | None
    threads: int
    seed: int
    rows: int = 4
    length: int = 352
    peak_rate: float = 3e-3
    warmup: float = 0.03
    other_weight: float = 0.1
    checkpoint_s: float = 240.0


@dataclass(frozen=True)
class Run:
    """What is trained, and with what."""

    settings: Settings
    tokenizer: PreTrainedTokenizerFast
    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; every linear layer reads a multiple of 64 values."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
    )
    return LlamaForCausalLM(config)


def new_optimizer(model: LlamaForCausalLM, rate: float) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if progress < warmup:
        return peak * max(progress, 1e-3) / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def encoded_stream(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[Encoded]:
    """The training examples as token ids, without end."""
    for example in training_examples(settings.seed):
        yield encode(tokenizer, example, settings.other_weight)


def batches(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Packed batches, without end."""
    stream = encoded_stream(settings, tokenizer)
    pad = int(tokenizer.convert_tokens_to_ids("<|pad|>"))
    while True:
        yield make_batch(pack_rows(stream, settings.rows, settings.length), settings.length, pad)


def step(run: Run, batch: Batch, rate: float) -> float:
    """One update; the loss is the weighted mean over the batch."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    logits = run.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).logits
    losses = functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), reduction="none"
    )
    weights = batch.weights.flatten()
    loss = (losses * weights).sum() / weights.sum()
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    return float(loss.detach())


def progress_bar() -> Progress:
    """Loss, speed and time left, redrawn rarely when the output is a file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )


def spent_share(settings: Settings, effort: Effort) -> float:
    """How much of the time or token budget is used, from 0 to 1."""
    share = effort.wall_s / settings.budget_s
    if settings.max_tokens is not None:
        share = max(share, effort.tokens / settings.max_tokens)
    return min(1.0, share)


def train(run: Run) -> Effort:
    """Update until the budget is spent, saving a checkpoint now and then."""
    settings, began_s, cpu_s = run.settings, time.monotonic(), time.process_time()
    effort, saved_s = Effort(0, 0, 0.0, 0.0, float("nan")), 0.0
    with progress_bar() as bar:
        task = bar.add_task("train", total=1.0, loss=effort.loss, speed=0.0)
        for batch in batches(settings, run.tokenizer):
            share = spent_share(settings, effort)
            if share >= 1.0:
                break
            rate = learning_rate(share, settings.peak_rate, settings.warmup)
            loss = step(run, batch, rate)
            effort = effort.after(
                loss, batch.tokens, time.monotonic() - began_s, time.process_time() - cpu_s
            )
            speed = effort.tokens / effort.wall_s
            bar.update(task, completed=share, loss=effort.loss, speed=speed)
            if effort.steps % 100 == 0:
                bar.console.print(f"step {effort.steps} loss {effort.loss:.4f} {speed:.0f} tok/s")
            if effort.wall_s - saved_s > settings.checkpoint_s:
                save_model(run.model, settings.output)
                saved_s = effort.wall_s
    return effort


def prepare(settings: Settings) -> Run:
    """Seed, tokenizer, model and optimizer, with the tokenizer already written."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    settings.output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(settings.seed)
    save_tokenizer(tokenizer, settings.output)
    model = new_model(tokenizer)
    return Run(settings, tokenizer, model, new_optimizer(model, settings.peak_rate))


def parse(arguments: list[str]) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(description="Train greenllm's bundled model.")
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-time budget")
    parser.add_argument("--tokens", type=int, default=None, help="token budget, if it ends first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=DEFAULT_FOLDER)
    given = parser.parse_args(arguments)
    return Settings(given.output, given.minutes * 60, given.tokens, given.threads, given.seed)


def main(arguments: list[str]) -> None:
    """Train, save, score and report."""
    settings = parse(arguments)
    started = datetime.now(UTC)
    run = prepare(settings)
    effort = train(run)
    save_model(run.model, settings.output)
    command = " ".join(["python -m finetune.bundled.train", *arguments])
    trained = Trained(run.model, run.tokenizer)
    write_report(settings.output, cost(effort, command, started) | quality(trained))


if __name__ == "__main__":
    main(sys.argv[1:])
