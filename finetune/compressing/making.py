"""From a model to a smaller checkpoint: read the examples, cut, let it learn from what was there.

Contract: the output is there as a whole or not at all; every joule is booked to the account.
Healing and students are fine-tunes (`finetune.run`) with the model as it was for a teacher.

Not covered: several processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import run as finetune_run
from finetune.bundled.tasks import training_examples
from finetune.compressing.config import GENERATED, CompressConfig
from finetune.compressing.importance import importance_of
from finetune.compressing.prune import prune
from finetune.compressing.student import student_of
from finetune.compressing.weights import zero_smallest
from finetune.data import Data, load_data
from finetune.model import load_base, load_tokenizer, place_of
from finetune.phases import PhaseAccount
from finetune.recipe import Recipe
from finetune.report import Grams
from finetune.watch import Progress
from greenllm.core import GreenllmError
from greenllm.model.merge import merge
from greenllm.model.options import LoadOptions

_READ = 128
_BATCH = 16
_MODEL_FILES = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*",
                "chat_template.jinja")  # fmt: skip
Show = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The model as it was, with examples."""

    model: Any
    tokenizer: Any
    data: Data
    recipe: Recipe


def read_source(config: CompressConfig, work: Path) -> Source:
    """Load the model in float32, and the examples.

    Raises:
        GreenllmError: one of them cannot be read.
    """
    data = config.data
    if data == GENERATED:
        data = str(work / "generated.jsonl")
        Path(data).write_text("\n".join(_conversations(config.examples, config.seed)), "utf-8")
    recipe = Recipe(
        model=config.model, data=data, output=work / "unused", method="full", seed=config.seed,
        device=config.device, threads=config.threads, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(recipe)
    found = load_data(recipe, tokenizer, tokenizer.model_max_length)
    return Source(load_base(recipe, place_of(recipe)), tokenizer, found, recipe)


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
    elif config.method == "sparsity":
        facts["zeros"] = zero_smallest(model, config.zeros or 0.0)
    else:
        found = importance_of(model, list(islice(batches(source), _READ // _BATCH)))
        facts["layer_importance"] = [round(float(value), 4) for value in found.layers]
        prune(model, found, **sizes)
    raw = work / "raw"
    model.save_pretrained(raw, safe_serialization=True)
    source.tokenizer.save_pretrained(raw)
    say(f"{config.method}: {model.num_parameters():,} parameters")
    return raw, facts


def batches(source: Source) -> Iterator[Tensor]:
    """Ids of training examples, several of like lengths cut to the shortest of them."""
    ranked = sorted(source.data.train, key=lambda item: len(item.ids))
    starts = list(range(0, len(ranked), _BATCH))
    spread = starts[:: max(1, len(starts) * _BATCH // _READ)]
    for start in spread:
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

    def heal(self, raw: Path, data: str, work: Path) -> dict[str, Any] | None:
        """Write the healed model to the output folder; returns the fine-tune's report.

        Raises:
            GreenllmError: it did not come to its end.
        """
        way, output = self.config.healing, self.config.folder
        if way is None:
            _copy_model(raw, output)
            return None
        recipe = self._recipe(way, raw, data, work / "healed")
        report = finetune_run.run(recipe, self.account, self.grams, self.show, self.say)
        if report is None or report["status"] != "completed":
            raise GreenllmError(f"healing did not end well: {report and report['reason']}")
        if way == "lora":
            with self.account.during("saving"):
                merge(recipe.folder, str(raw), output, LoadOptions(dtype="float32"))
        else:
            _copy_model(recipe.folder, output)
        return report

    def _recipe(self, way: Any, raw: Path, data: str, output: Path) -> Recipe:
        config = self.config
        return Recipe(
            model=str(raw), data=data, output=output, method=way, objective="distill",
            teacher=config.model, steps=config.steps, batch_size=config.batch_size,
            learning_rate=config.learning_rate or (1e-3 if config.method == "student" else None),
            rank=config.rank, answers=0, seed=config.seed, device=config.device,
            threads=config.threads, save_every=config.steps,
        )  # fmt: skip


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in _files_of(source, _MODEL_FILES):
        shutil.copy(path, target / path.name)


def _files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]
