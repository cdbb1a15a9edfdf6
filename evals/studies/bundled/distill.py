"""Distil the draft model from a finished model: `python -m evals.studies.bundled.distill`.

Contract: the draft keeps the tokenizer and learns at every position what the model expects, on
data that the model's own training did not draw. Resumable and pausable like the model's training.
Not covered: learning from text that the model writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from torch import Tensor
from transformers import LlamaForCausalLM

from evals.studies.bundled import loop, measure
from evals.studies.bundled.data import Source
from evals.studies.bundled.exits import fused
from evals.studies.bundled.network import Shape, compiled, hidden_states, make_frame, new_model
from evals.studies.bundled.network import read_logits as plain_read
from evals.studies.bundled.optimizer import Optimizer
from evals.studies.bundled.packing import Batch
from evals.studies.bundled.text import read_library
from evals.studies.bundled.tokenizer import load_tokenizer, save_tokenizer
from evals.studies.bundled.train import check_batches, make_source

SHAPE: Final = Shape(layers=2, hidden=128, heads=2, inner=384)
# Prompts matter less than answers, but a draft must follow the model on both.
PROMPT_WEIGHT: Final = 0.2
SEED: Final = 8
PEAK_RATE: Final = 4e-3


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


def prepare(teacher: Path, settings: loop.Settings) -> loop.Job:
    """Teacher, draft, data and checks of a run."""
    settings.begin()
    tokenizer = load_tokenizer(teacher)
    save_tokenizer(tokenizer, settings.output)
    source = make_source(tokenizer, read_library(settings.text), settings.seed)
    followed = LlamaForCausalLM.from_pretrained(str(teacher)).requires_grad_(False)
    draft = new_model(SHAPE, len(tokenizer), (int(tokenizer.eos_token_id), source.pad))
    pair, layer = Pair(followed, draft), fused().layer
    return loop.Job(
        output=settings.output,
        tokens=settings.tokens,
        model=draft,
        optimizer=Optimizer(draft, PEAK_RATE),
        batch=source.batch,
        loss=make_loss(pair, layer),
        check=make_check(pair, source, layer),
    )


def main(
    teacher: Annotated[Path, typer.Option(help="Folder of the finished model.")],
    output: loop.Output,
    tokens: loop.Budget = 10_000_000,
    text: loop.Text = None,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Distil greenllm's draft model."""
    settings = loop.Settings(output, tokens, text, threads, SEED)
    loop.run_and_save(prepare(teacher, settings), settings)


if __name__ == "__main__":
    typer.run(main)
