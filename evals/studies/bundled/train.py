"""Train the bundled model from nothing: `python -m evals.studies.bundled.train --text FOLDER`.

Contract: needs no network; reads what `tasks` generates and, where a folder is given, its *.txt
files. Writes a folder that transformers loads, a checkpoint every few minutes, the curve, and the
card. The same seed gives the same data; the budget counts tokens, so a run may be paused, and a
killed one goes on when started again. Not covered: several devices.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evals.studies.bundled import loop, measure
from evals.studies.bundled.data import Source
from evals.studies.bundled.effort import Effort
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
from evals.studies.bundled.record import cost, save_model, write_json
from evals.studies.bundled.text import Library, read_library
from evals.studies.bundled.tokenizer import Encoder, load_tokenizer, save_tokenizer, train_tokenizer

SHAPE: Final = Shape(layers=12, hidden=192, heads=3, inner=512)
OTHER_WEIGHT: Final = 0.1
CHECK_SEED: Final = 2
CHECK_SIZE: Final = 6
CHECK_BLOCKS: Final = 8
Check = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    output: Path
    tokens: int
    text: Path | None
    threads: int = 2
    seed: int = 7
    peak_rate: float = 3e-3
    exit_scale: float = 0.5
    layer_drop: float = 0.1


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
    settings: Settings, model: LlamaForCausalLM, functions: Functions
) -> Callable[[Batch, int], tuple[torch.Tensor, float]]:
    """The loss with exits and skipped layers; shown is the last layer's."""
    layers = len(model.model.layers)

    def loss(batch: Batch, step: int) -> tuple[torch.Tensor, float]:
        rng = random.Random(f"skip-{settings.seed}-{step}")
        skipped = skipped_layers(rng, layers, settings.layer_drop)
        plan = Plan(exits_of_step(step, layers), skipped)
        losses = step_losses(model, batch, plan, functions)
        return total_loss(losses, settings.exit_scale), float(losses[layers].detach())

    return loss


def get_tokenizer(settings: Settings, library: Library) -> PreTrainedTokenizerFast:
    """A resumed run keeps its tokenizer."""
    if (settings.output / "checkpoint.pt").exists():
        return load_tokenizer(settings.output)
    tokenizer = train_tokenizer(settings.seed, library)
    save_tokenizer(tokenizer, settings.output)
    return tokenizer


def prepare(settings: Settings) -> loop.Job:
    """Seed, tokenizer, model, data and checks of a run."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    settings.output.mkdir(parents=True, exist_ok=True)
    library = read_library(settings.text)
    tokenizer = get_tokenizer(settings, library)
    source = make_source(tokenizer, library, settings.seed)
    model = new_model(SHAPE, len(tokenizer), (int(tokenizer.eos_token_id), source.pad))
    functions = fused()
    return loop.Job(
        output=settings.output,
        tokens=settings.tokens,
        model=model,
        optimizer=Optimizer(model, settings.peak_rate),
        batch=source.batch,
        loss=make_loss(settings, model, functions),
        check=make_check(model, source, functions.layer),
    )


def parse(arguments: list[str]) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(description="Train greenllm's bundled model.")
    parser.add_argument("--tokens", type=int, default=28_000_000, help="token budget")
    parser.add_argument("--text", type=Path, default=None, help="folder with *.txt, real text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True, help="a folder to write")
    given = parser.parse_args(arguments)
    return Settings(given.output, given.tokens, given.text, given.threads, given.seed)


def finish(job: loop.Job, effort: Effort, record: Mapping[str, object]) -> None:
    """Write the model and what it took."""
    job.model.config.greenllm_exit_layers = list(exit_layers(len(job.model.model.layers)))
    save_model(job.model, job.output)
    write_json(job.output / "training.json", cost(effort, record))
    job.checkpoint.unlink()


def main(arguments: list[str]) -> None:
    """Train and save; `report` scores the result and writes its card."""
    settings = parse(arguments)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    job = prepare(settings)
    effort = loop.run(job)
    names = sorted(path.name for path in settings.text.glob("*.txt")) if settings.text else []
    finish(job, effort, {"date": started, "token_budget": settings.tokens, "seed": settings.seed,
                         "threads": settings.threads, "text_files": names})  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
