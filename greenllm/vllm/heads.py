"""Which way of drafting a checkpoint is for: a model of its own, or a head on the served model.

Contract: EAGLE heads (Li et al., arXiv:2401.15077; EAGLE-3, arXiv:2503.01840) are told by their
tensors, as their configurations call them Llama: both have `fc`, which joins a token with the
model's last state, and the third has `midlayer` or `d2t` beside it. Only names are read.

Not covered: Medusa and other heads; checkpoints in other formats than safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors import safe_open

DraftMethod = Literal["draft_model", "eagle", "eagle3"]
_THIRD = ("midlayer.", "d2t")


def draft_method_of(source: str) -> DraftMethod:
    """How vLLM is to use a checkpoint; what is no folder is taken for a model."""
    names: set[str] = set()
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            names |= {name.removeprefix("model.") for name in tensors.keys()}  # noqa: SIM118
    if "fc.weight" not in names:
        return "draft_model"
    return "eagle3" if any(name.startswith(_THIRD) for name in names) else "eagle"
