"""What a draft checkpoint is, by the names of its tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from greenllm.vllm.heads import DraftMethod, draft_method_of


@pytest.mark.parametrize(
    ("names", "method"),
    [
        (["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"], "draft_model"),
        (["fc.weight", "layers.0.self_attn.q_proj.weight"], "eagle"),
        (["model.fc.weight", "model.layers.0.mlp.up_proj.weight"], "eagle"),
        (["fc.weight", "midlayer.self_attn.q_proj.weight"], "eagle3"),
        (["fc.weight", "layers.0.mlp.up_proj.weight", "d2t"], "eagle3"),
        (["midlayer.mlp.up_proj.weight"], "draft_model"),
    ],
)
def test_heads_are_told_by_their_tensors(
    names: list[str], method: DraftMethod, tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        save_file({name: np.zeros(1)}, tmp_path / f"model-{number}.safetensors")
    assert draft_method_of(str(tmp_path)) == method


def test_what_is_no_folder_is_a_model() -> None:
    assert draft_method_of("somebody/model") == "draft_model"
