"""Saving a trained model, and the part of its record that says what it cost.

Contract: weights are written under a temporary name and then renamed, so a reader never sees
half a file. Not covered: scores, which `report` adds.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from transformers import GenerationConfig, LlamaForCausalLM

from evals.studies.bundled.effort import DYNAMIC_W, IDLE_W, VIRTUAL_CPUS, Effort, modelled_j

PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors")


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Replace config, weights and generation settings, each in one rename."""
    ids = model.config
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[ids.eos_token_id, 0],
        pad_token_id=ids.pad_token_id,
        max_new_tokens=256,
    )
    with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        model.save_pretrained(name)
        for path in Path(name).iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


def cost(effort: Effort, about: Mapping[str, object]) -> dict[str, object]:
    """What was run, and what it took."""
    return {
        **about,
        **asdict(effort),
        "energy_modelled_j": round(modelled_j(effort), 1),
        "energy_method": (
            f"modelled, not measured: CPU seconds x {DYNAMIC_W:.2f} W + wall seconds x "
            f"{VIRTUAL_CPUS} vCPU x {IDLE_W} W (SPECpower-derived figures of Cloud Carbon "
            "Footprint for AMD EPYC gen 3, 0.46 to 1.96 W per vCPU)"
        ),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a record for people and programs."""
    path.write_text(json.dumps(content, indent=2) + "\n")
