"""From a model to a smaller checkpoint: read the examples, cut, let it learn from what was there.

Contract: the output is there as a whole or not at all; every joule is booked to the account.
Healing and students are fine-tunes (`finetune.run`) with the model as it was for a teacher.

Not covered: several processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from evals.tasks.generated.tasks import training_examples
from finetune import run as finetune_run
from finetune.bill.phases import PhaseAccount
from finetune.bill.report import Grams
from finetune.compressing.config import GENERATED, CompressConfig
from finetune.compressing.importance import importance_of
from finetune.compressing.prune import prune
from finetune.compressing.student import student_of
from finetune.data.dataset import TrainingData, load_data
from finetune.files import SavingError
from finetune.recipe import Recipe
from finetune.train.model import device_of, load_base, load_tokenizer
from finetune.train.watch import Progress
from greenllm.core import GreenllmError
from greenllm.model.files import local_folder
from greenllm.model.merge import merge
from greenllm.model.options import LoadOptions, resolve

_READ = 128
_BATCH = 16
Show = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The model as it was, with examples; `dtype` is what its weights are stored in."""

    model: Any
    tokenizer: Any
    data: TrainingData
    recipe: Recipe
    dtype: torch.dtype


def read_source(config: CompressConfig, work: Path) -> Source:
    """The model and the examples of a compression; see `read_model`."""
    place = {"device": config.device, "threads": config.threads, "seed": config.seed}
    return read_model(config.model, config.data, config.examples, work, **place)


def read_model(model: str, data: str, count: int, work: Path, **recipe: Any) -> Source:
    """Load a model in float32, and examples: so many of 'generated', or those of a file.

    `recipe` is where to compute and with which seed, as for a fine-tune.

    Raises:
        GreenllmError: one of them cannot be read.
    """
    seed = recipe["seed"]
    if data == GENERATED:
        data = str(work / "generated.jsonl")
        Path(data).write_text("\n".join(_conversations(count, seed)), encoding="utf-8")
    about = Recipe(
        model=model, data=data, output=work / "unused", method="full", dtype="float32", **recipe
    )
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(about)
    found = load_data(about, tokenizer, tokenizer.model_max_length)
    stored = AutoConfig.from_pretrained(local_folder(resolve(model))).dtype
    loaded = load_base(about, device_of(about))
    return Source(loaded, tokenizer, found, about, stored or torch.float32)


def _conversations(count: int, seed: int) -> Iterator[str]:
    for example in islice(training_examples(seed), count):
        turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
        yield json.dumps({"messages": turns})


def make(
    config: CompressConfig, source: Source, work: Path, say: Say
) -> tuple[Path, dict[str, Any]]:
    """The smaller checkpoint before it has learnt anything, and what was done.

    Raises:
        ConfigError: the sizes do not fit the model.
    """
    model = source.model
    facts: dict[str, Any] = {}
    sizes = {"layers": config.layers, "heads": config.heads, "mlp_width": config.mlp_width}
    if config.method == "student":
        model = student_of(model, config.seed, hidden_size=config.hidden_size, **sizes)
    else:
        found = importance_of(model, batches(source))
        facts["layer_importance"] = [round(float(value), 4) for value in found.layers]
        prune(model, found, **sizes)
    raw = work / "raw"
    model.save_pretrained(raw, safe_serialization=True)
    source.tokenizer.save_pretrained(raw)
    say(f"{config.method}: {model.num_parameters():,} parameters")
    return raw, facts


def batches(source: Source) -> Iterator[Tensor]:
    """Ids of training examples of all lengths, those of like lengths cut to the shortest."""
    ranked = sorted(source.data.train, key=lambda item: len(item.ids))
    starts = list(range(0, len(ranked), _BATCH))
    count = min(_READ // _BATCH, len(starts))
    for start in (starts[i * (len(starts) - 1) // max(1, count - 1)] for i in range(count)):
        chosen = ranked[start : start + _BATCH]
        width = len(chosen[0].ids)
        yield torch.tensor([item.ids[:width] for item in chosen], device=source.model.device)


@dataclass(frozen=True, slots=True)
class Healer:
    """Fine-tunes a cut model on what the model as it was says."""

    config: CompressConfig
    account: PhaseAccount
    grams: Grams
    show: Show
    say: Say

    def heal(self, raw: Path, data: str, work: Path) -> tuple[Path, dict[str, Any] | None]:
        """A folder with the healed model, and the fine-tune's report; the raw one without healing.

        Raises:
            GreenllmError: it did not come to its end.
        """
        way = self.config.healing
        if way is None:
            return raw, None
        recipe = self._recipe(way, raw, data, work / "healed")
        report = finetune_run.run(recipe, self.account, self.grams, self.show, self.say)
        if report is None or report["status"] != "completed":
            raise GreenllmError(f"healing did not end well: {report and report['reason']}")
        if way == "full":
            return recipe.folder, report
        merged = work / "merged"
        with self.account.during("saving"):
            merge(recipe.folder, str(raw), merged, LoadOptions())
        return merged, report

    def _recipe(self, way: Any, raw: Path, data: str, output: Path) -> Recipe:
        config = self.config
        return Recipe(
            model=str(raw), data=data, output=output, method=way, objective="distill",
            teacher=config.model, steps=config.steps, batch_size=config.batch_size,
            learning_rate=config.learning_rate or (1e-3 if config.method == "student" else None),
            rank=config.rank, answers=0, seed=config.seed, device=config.device,
            threads=config.threads, save_every=config.steps,
        )  # fmt: skip


def write(source: Path, like: Source, work: Path, output: Path) -> None:
    """The checkpoint in the number format that the model had, at once or not at all.

    Raises:
        SavingError: it cannot be written.
    """
    fresh = work / "final"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=like.dtype)
    try:
        model.save_pretrained(fresh, safe_serialization=True)
        like.tokenizer.save_pretrained(fresh)
        fresh.rename(output)
    except Exception as error:
        raise SavingError(f"cannot write {output}: {error}") from error
