"""The first layers as a checkpoint compute what the model does up to its exit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config
from typer.testing import CliRunner

import greenllm
from greenllm.cli.app import app
from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from greenllm.model.truncate import truncate
from greenllm.runner.early_exit import first_layers
from tests.model.driving import save

BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
TEXT = torch.arange(10, 40)[None]


@torch.inference_mode()
def test_it_says_what_the_exit_says(tmp_path: Path) -> None:
    out = tmp_path / "made" / "four"
    result = CliRunner().invoke(app, ["truncate", "bundled", "--output", str(out)])
    assert result.exit_code == 0, result.output
    assert "the first 4 layers of bundled" in result.output
    found = AutoModelForCausalLM.from_pretrained(out).eval()
    whole: Any = AutoModelForCausalLM.from_pretrained(BUNDLED).eval()
    assert torch.equal(found(TEXT).logits, first_layers(whole, 4, 12)(TEXT, use_cache=False).logits)
    values = json.loads((out / "config.json").read_text())
    assert values["num_hidden_layers"] == 4
    assert not [key for key in values if key.startswith("greenllm_exit")]
    assert (out / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["four"]


def test_lists_of_layers_are_cut_too(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        layer_types=["full_attention"] * 4,
    )  # fmt: skip
    folder = save(config, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder)
    truncate(folder, 2, tmp_path / "cut", LoadOptions())
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert len(found.model.layers) == 2
    assert len(found.config.layer_types) == 2


@pytest.mark.parametrize("layers", [0, 12, 13])
def test_there_must_be_such_layers(layers: int, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"--layers must be in \[1, 11\]"):
        truncate("bundled", layers, tmp_path / "out", LoadOptions())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="exists"):
        truncate("bundled", 4, tmp_path, LoadOptions())
