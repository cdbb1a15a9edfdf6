"""Saving a trained model and writing what it cost and how it scores.

Contract: weights are written under a temporary name and then renamed, so a reader never sees
half a file. Energy is modelled from processor time and said to be so. `python -m
finetune.bundled.report` scores a finished model anew. Not covered: measured energy, and the
cost of trials before the final run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, cast

from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.bundled.card import render_card
from finetune.bundled.evaluate import finished_stories, sample_answers, score_all

DYNAMIC_W: Final = 1.50
IDLE_W: Final = 0.46
VIRTUAL_CPUS: Final = 2
HELD_OUT_SEED: Final = 1
HELD_OUT_SIZE: Final = 200
PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors")
DEFAULT_FOLDER: Final = Path("greenllm/model/bundled")


@dataclass(frozen=True)
class Effort:
    """What training has used so far, with a smoothed loss."""

    steps: int
    tokens: int
    wall_s: float
    cpu_s: float
    loss: float

    def after(self, loss: float, tokens: int, wall_s: float, cpu_s: float) -> Effort:
        """The effort after one more step."""
        share = max(0.01, 1 / (self.steps + 1))
        smooth = loss if self.steps == 0 else (1 - share) * self.loss + share * loss
        return Effort(self.steps + 1, self.tokens + tokens, wall_s, cpu_s, smooth)


@dataclass(frozen=True)
class Trained:
    """A finished model with its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def modelled_j(effort: Effort) -> float:
    """Joules from processor seconds and idle wall time, per AMD EPYC gen-3 vCPU figures."""
    return effort.cpu_s * DYNAMIC_W + effort.wall_s * VIRTUAL_CPUS * IDLE_W


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Replace config, weights and generation settings, each in one rename."""
    ids = model.config
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[ids.eos_token_id, 0],
        pad_token_id=ids.pad_token_id,
        max_new_tokens=256,
    )
    with TemporaryDirectory(dir=folder, prefix=".checkpoint-") as name:
        model.save_pretrained(name)
        for path in Path(name).iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


def cost(effort: Effort, command: str, started: datetime) -> dict[str, object]:
    """What was run, and what it took."""
    return {
        "command": command,
        "date": started.isoformat(timespec="seconds"),
        **asdict(effort),
        "energy_modelled_j": round(modelled_j(effort), 1),
        "energy_method": (
            f"modelled, not measured: CPU seconds x {DYNAMIC_W:.2f} W + wall seconds x "
            f"{VIRTUAL_CPUS} vCPU x {IDLE_W} W (SPECpower-derived figures of Cloud Carbon "
            "Footprint for AMD EPYC gen 3, 0.46 to 1.96 W per vCPU)"
        ),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def quality(trained: Trained) -> dict[str, object]:
    """Size, held-out scores and some answers of a finished model."""
    model, tokenizer = trained.model.eval(), trained.tokenizer
    scores = score_all(model, tokenizer, HELD_OUT_SIZE, HELD_OUT_SEED)
    stories = finished_stories(model, tokenizer)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_seed": HELD_OUT_SEED,
        "held_out": {s.task: {"right": s.right, "asked": s.asked} for s in scores},
        "stories": {"ended_by_themselves": stories.right, "asked": stories.asked},
        "samples": sample_answers(model, tokenizer),
    }


def write_report(folder: Path, content: Mapping[str, object]) -> None:
    """Write training.json and the model card that follows from it."""
    (folder / "training.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(render_card(content))


def load(folder: Path) -> Trained:
    """A finished model from its folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return Trained(LlamaForCausalLM.from_pretrained(str(folder)), tokenizer)


def main(arguments: list[str]) -> None:
    """Score a finished model anew and keep what is known about its training."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    folder = cast(Path, parser.parse_args(arguments).folder)
    known = json.loads((folder / "training.json").read_text())
    write_report(folder, known | quality(load(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
