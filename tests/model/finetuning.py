"""Fine-tuning a tiny model for real, for the tests of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune import run as finetune_run
from finetune.bill.phases import PhaseAccount
from finetune.bill.report import Grams
from finetune.recipe import Recipe
from finetune.train.watch import Progress
from greenllm.energy.carbon.grid import IntensityTable
from greenllm.energy.meters.modelled import modelled_meter
from greenllm.energy.meters.protocol import Meter
from greenllm.model.options import BUNDLED_PATH

STEPS = 24


def save_tiny(folder: Path) -> Path:
    """A model of 140 thousand parameters with the bundled tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        tie_word_embeddings=True, eos_token_id=2, pad_token_id=3, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_PATH / name, folder / name)
    return folder


def train(
    tiny: Path,
    output: Path,
    *,
    meter: Meter | None = None,
    show: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> dict[str, Any]:
    """A run on the example data; the report as it was written."""
    given = {"steps": STEPS, "batch_size": 4, "answers": 0, "threads": 1, "device": "cpu",
             "data": "example"}  # fmt: skip
    recipe = Recipe(output=output, **{"model": str(tiny), **given, **options})
    grams = Grams(IntensityTable.load().lookup("WORLD"), 1.0, None)
    account = PhaseAccount(meter or modelled_meter(), bills_idle=recipe.bill_idle)
    found = finetune_run.run(recipe, account, grams, show, lambda text: None)
    assert found is not None
    written: dict[str, Any] = json.loads((output / "green_report.json").read_text())
    assert written == json.loads(json.dumps(found))
    return written


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    found: dict[str, torch.Tensor] = load_file(path)
    return found


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def crash_at(step: int) -> Callable[[Progress], None]:
    """Shows progress until a step, at which the process dies."""

    def crash(now: Progress) -> None:
        if now.seen.steps == step:
            raise RuntimeError("crash")

    return crash
