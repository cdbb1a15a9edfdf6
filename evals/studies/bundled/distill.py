"""Distil the draft model from a finished model: `python -m evals.studies.bundled.distill`.

Contract: the draft keeps the tokenizer and learns at every position what the model expects, on
data that the model's own training did not draw. Resumable and pausable like the model's training.
Not covered: learning from text that the model writes itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from evals.studies.bundled import loop, measure
from evals.studies.bundled.data import Source
from evals.studies.bundled.exits import fused
from evals.studies.bundled.network import Shape, compiled, hidden_states, make_frame, new_model
from evals.studies.bundled.network import read_logits as plain_read
from evals.studies.bundled.optimizer import Optimizer
from evals.studies.bundled.packing import Batch
from evals.studies.bundled.record import cost, save_model, write_json
from evals.studies.bundled.text import read_library
from evals.studies.bundled.tokenizer import load_tokenizer, save_tokenizer
from evals.studies.bundled.train import check_batches, make_source

SHAPE: Final = Shape(layers=2, hidden=128, heads=2, inner=384)
# Prompts matter less than answers, but a draft must follow the model on both.
PROMPT_WEIGHT: Final = 0.2


@dataclass(frozen=True)
class Settings:
    """Everything a distillation depends on."""

    teacher: Path
    output: Path
    tokens: int
    text: Path | None
    threads: int = 2
    seed: int = 8
    peak_rate: float = 4e-3


@dataclass(frozen=True)
class Pair:
    """The model that is followed and the draft that follows."""

    teacher: LlamaForCausalLM
    draft: LlamaForCausalLM


Layer = Callable[..., Tensor]


def soft_loss(logits: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy with the teacher's distribution, weighted by token."""
    losses = -(torch.softmax(teacher, -1) * torch.log_softmax(logits, -1)).sum(-1)
    return (losses * weights).sum() / weights.sum()


def make_loss(pair: Pair, layer: Layer) -> Callable[[Batch, int], tuple[Tensor, float]]:
    """The distillation loss of one batch."""
    read, soft, dtype = compiled(plain_read), compiled(soft_loss), torch.bfloat16

    def expect(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        frame = make_frame(batch, dtype)
        state = hidden_states(model, batch, frame, (), (), layer)[len(model.model.layers)]
        return read(state, model.model.norm.weight, model.lm_head.weight, dtype)

    def loss(batch: Batch, step: int) -> tuple[Tensor, float]:
        with torch.no_grad():
            teacher = expect(pair.teacher, batch)
        floor = PROMPT_WEIGHT * (batch.weights > 0)
        weights = torch.maximum(batch.weights, floor)
        value = soft(expect(pair.draft, batch), teacher, weights)
        return value, float(value.detach())

    return loss


def make_check(pair: Pair, source: Source, layer: Layer) -> Callable[[], Mapping[str, float]]:
    """How often the draft expects what the model expects, on held-out tokens."""
    batches = check_batches(source)

    def readings(model: LlamaForCausalLM) -> list[measure.Reading]:
        return [measure.read_batch(model, b, (), torch.bfloat16, layer) for b in batches]

    teacher = readings(pair.teacher)

    def check() -> Mapping[str, float]:
        draft = readings(pair.draft)
        share = measure.follows(draft, teacher)
        return {"held_out_loss": measure.mean_loss(draft), "agree_model": share}

    return check


def prepare(settings: Settings) -> loop.Job:
    """Teacher, draft, data and checks of a run."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    settings.output.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(settings.teacher)
    save_tokenizer(tokenizer, settings.output)
    source = make_source(tokenizer, read_library(settings.text), settings.seed)
    teacher = LlamaForCausalLM.from_pretrained(str(settings.teacher)).requires_grad_(False)
    draft = new_model(SHAPE, len(tokenizer), (int(tokenizer.eos_token_id), source.pad))
    pair, layer = Pair(teacher, draft), fused().layer
    return loop.Job(
        output=settings.output,
        tokens=settings.tokens,
        model=draft,
        optimizer=Optimizer(draft, settings.peak_rate),
        batch=source.batch,
        loss=make_loss(pair, layer),
        check=make_check(pair, source, layer),
    )


def parse(arguments: list[str]) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(description="Distil greenllm's draft model.")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--output", type=Path, required=True, help="a folder to write")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="token budget")
    parser.add_argument("--text", type=Path, default=None, help="folder with *.txt, real text")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    settings = Settings(given.teacher, given.output, given.tokens, given.text)
    return replace(settings, threads=given.threads)


def main(arguments: list[str]) -> None:
    """Distil and save; `report` scores the result and writes its card."""
    settings = parse(arguments)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    job = prepare(settings)
    effort = loop.run(job)
    names = sorted(path.name for path in settings.text.glob("*.txt")) if settings.text else []
    about = {"date": started, "token_budget": settings.tokens, "seed": settings.seed,
             "threads": settings.threads, "text_files": names}  # fmt: skip
    save_model(job.model, job.output)
    write_json(job.output / "training.json", cost(effort, about))
    job.checkpoint.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
