"""How to load a model, and where the bundled ones lie. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.model.info import Quantization

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BUNDLED = "bundled"
BUNDLED_DRAFT = "bundled-draft"
BUNDLED_PATH = Path(__file__).parent / "bundled"
BUNDLED_PATHS = {BUNDLED: BUNDLED_PATH, BUNDLED_DRAFT: Path(__file__).parent / "bundled_draft"}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model; see `EngineConfig` for what each means."""

    quantization: Quantization = "none"
    dtype: Dtype = "auto"
    device: str = "auto"
    attention: str = "sdpa"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    max_context: int | None = None


def own_name(name: str) -> str:
    """What a model is called: a folder by its last part, a hub id as it is."""
    return name if name in BUNDLED_PATHS or not Path(name).is_dir() else Path(name).resolve().name


def resolve(name: str) -> str:
    """Folder or hub id behind a model's name."""
    return str(BUNDLED_PATHS.get(name, name))
