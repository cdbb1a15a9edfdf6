"""Train the bundled model from nothing: `python -m evals.studies.bundled.train --text FOLDER`.

Contract: needs no network; reads what `tasks` generates and, where a folder is given, its *.txt
files. Writes a folder that transformers loads, a checkpoint every few minutes, the curve, and the
card. The same seed gives the same data; the budget counts tokens, so a run may be paused, and a
killed one goes on when started again. Not covered: several devices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import torch
import typer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evals.studies.bundled import loop, measure
from evals.studies.bundled.data import Source
from evals.studies.bundled.exits import (
    Functions,
    Plan,
    exit_layers,
    exits_of_step,
    fused,
    skipped_layers,
    step_losses,
    total_loss,
)
from evals.studies.bundled.network import Shape, new_model
from evals.studies.bundled.optimizer import Optimizer
from evals.studies.bundled.packing import Batch
from evals.studies.bundled.text import Library, read_library
from evals.studies.bundled.tokenizer import Encoder, load_tokenizer, save_tokenizer, train_tokenizer

SHAPE: Final = Shape(layers=12, hidden=192, heads=3, inner=512)
OTHER_WEIGHT: Final = 0.1
CHECK_SEED: Final = 2
CHECK_SIZE: Final = 6
CHECK_BLOCKS: Final = 8
PEAK_RATE: Final = 3e-3
EXIT_SCALE: Final = 0.5
LAYER_DROP: Final = 0.1
Check = Callable[[], Mapping[str, float]]


def make_source(tokenizer: PreTrainedTokenizerFast, library: Library, seed: int) -> Source:
    """The data of a run."""
    pad = int(tokenizer.convert_tokens_to_ids("<|pad|>"))
    return Source(Encoder(tokenizer, OTHER_WEIGHT), library, seed, pad)


def check_batches(source: Source) -> list[Batch]:
    """A little of what is held out, for the curve."""
    answers = measure.held_out_answers(source.encoder, CHECK_SIZE, CHECK_SEED)
    text = measure.held_out_text(source.encoder, source.library, CHECK_BLOCKS)
    return list(measure.packed_batches([*answers, *text], source.pad))


def make_check(
    model: LlamaForCausalLM, source: Source, layer: Callable[..., torch.Tensor]
) -> Check:
    """Held-out loss, and how often the two main exits agree."""
    batches = check_batches(source)
    layers = len(model.model.layers)
    exits = (layers // 3, layers // 2)

    def check() -> Mapping[str, float]:
        readings = [
            measure.read_batch(model, batch, exits, torch.bfloat16, layer) for batch in batches
        ]
        shares = measure.agreement(readings)
        found = {"held_out_loss": measure.mean_loss(readings)}
        return found | {f"agree_{exit_}": shares[exit_] for exit_ in exits}

    return check


def make_loss(
    seed: int, model: LlamaForCausalLM, functions: Functions
) -> Callable[[Batch, int], tuple[torch.Tensor, float]]:
    """The loss with exits and skipped layers; shown is the last layer's."""
    layers = len(model.model.layers)

    def loss(batch: Batch, step: int) -> tuple[torch.Tensor, float]:
        rng = random.Random(f"skip-{seed}-{step}")
        skipped = skipped_layers(rng, layers, LAYER_DROP)
        plan = Plan(exits_of_step(step, layers), skipped)
        losses = step_losses(model, batch, plan, functions)
        return total_loss(losses, EXIT_SCALE), float(losses[layers].detach())

    return loss


def get_tokenizer(settings: loop.Settings, library: Library) -> PreTrainedTokenizerFast:
    """A resumed run keeps its tokenizer."""
    if (settings.output / "checkpoint.pt").exists():
        return load_tokenizer(settings.output)
    tokenizer = train_tokenizer(settings.seed, library)
    save_tokenizer(tokenizer, settings.output)
    return tokenizer


def prepare(settings: loop.Settings) -> loop.Job:
    """Tokenizer, model, data and checks of a run."""
    settings.begin()
    library = read_library(settings.text)
    tokenizer = get_tokenizer(settings, library)
    source = make_source(tokenizer, library, settings.seed)
    model = new_model(SHAPE, len(tokenizer), (int(tokenizer.eos_token_id), source.pad))
    model.config.greenllm_exit_layers = list(exit_layers(SHAPE.layers))
    functions = fused()
    return loop.Job(
        output=settings.output,
        tokens=settings.tokens,
        model=model,
        optimizer=Optimizer(model, PEAK_RATE),
        batch=source.batch,
        loss=make_loss(settings.seed, model, functions),
        check=make_check(model, source, functions.layer),
    )


def main(
    output: loop.Output,
    tokens: loop.Budget = 28_000_000,
    text: loop.Text = None,
    threads: Annotated[int, typer.Option()] = 2,
    seed: Annotated[int, typer.Option()] = 7,
) -> None:
    """Train greenllm's bundled model."""
    settings = loop.Settings(output, tokens, text, threads, seed)
    loop.run_and_save(prepare(settings), settings)


if __name__ == "__main__":
    typer.run(main)
