"""int8 and nf4 by bitsandbytes: the tokens of transformers, smaller weights, honest counts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from greenllm.model.info import Quantization
from greenllm.model.loader import load_model
from greenllm.model.options import LoadOptions
from tests.model.driving import answers, generate, load, random_prompts, save

KINDS: tuple[Quantization, ...] = ("int8", "nf4")
WIDE = 128
LAYERS = 2


def _config(intermediate_size: int) -> Any:
    return LlamaConfig(
        vocab_size=96,
        hidden_size=WIDE,
        intermediate_size=intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama all of whose widths are multiples of 64."""
    return save(_config(256), tmp_path_factory.mktemp("even"))


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama whose down projections are 96 wide."""
    return save(_config(96), tmp_path_factory.mktemp("awkward"))


def _plain(folder: str, kind: Quantization, kept: tuple[str, ...] = ()) -> Any:
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["lm_head", *kept],
        )
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_generate(kind: Quantization, folder: str) -> None:
    """One at a time; int8's rounding depends on the batch, see test_equivalence."""
    runner = load(folder, LoadOptions(quantization=kind))
    prompts = random_prompts(96, (5, 13, 21))
    expected = generate(_plain(folder, kind), prompts, 20)
    assert [answers(runner, [prompt], 20)[0] for prompt in prompts] == expected
    assert all(len(set(answer)) > 4 for answer in expected)
    assert runner.info.kept_layers == ()


def test_nf4_tokens_do_not_depend_on_the_batch(folder: str) -> None:
    runner = load(folder, LoadOptions(quantization="nf4"))
    prompts = random_prompts(96, (5, 13, 21))
    alone = [answers(runner, [prompt], 20)[0] for prompt in prompts]
    assert answers(runner, prompts, 20, max_batch_tokens=8, stagger=1) == alone


def test_weights_shrink_and_parameters_stay(folder: str) -> None:
    """int8: a byte per weight and four per output row.

    nf4: half a byte per weight, a byte per block of 64, code tables, and a few floats per layer.
    """
    infos = {kind: load_model(folder, LoadOptions(quantization=kind)).info for kind in KINDS}
    plain = load_model(folder, LoadOptions()).info
    rows = LAYERS * (WIDE + 64 + 64 + WIDE + 256 + 256 + WIDE)
    linear = LAYERS * WIDE * (WIDE + 64 + 64 + WIDE + 3 * 256)
    assert plain.parameters == infos["int8"].parameters == infos["nf4"].parameters
    assert plain.weight_bytes - infos["int8"].weight_bytes == 3 * linear - 4 * rows
    rest = plain.weight_bytes - 4 * linear
    tables = 7 * LAYERS * (16 + 256) * 4
    extra = infos["nf4"].weight_bytes - rest - (linear // 2 + linear // 64 + tables)
    assert 0 <= extra < 7 * LAYERS * 64
    assert {info.quantization for info in infos.values()} == set(KINDS)


def test_nf4_is_double_quantized(folder: str) -> None:
    model = load_model(folder, LoadOptions(quantization="nf4")).model
    state = model.get_submodule("model.layers.0.mlp.up_proj").weight.quant_state
    assert state.quant_type == "nf4"
    assert state.nested
    assert state.absmax.dtype == torch.uint8


def test_nf4_keeps_awkward_layers_and_says_so(
    awkward: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loaded = load_model(awkward, LoadOptions(quantization="nf4"))
    kept = tuple(f"model.layers.{i}.mlp.down_proj" for i in range(LAYERS))
    assert loaded.info.kept_layers == kept
    assert "keeps 2 layers" in caplog.text
    for name in kept:
        assert loaded.model.get_submodule(name).weight.dtype == torch.float32
    assert loaded.model.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.uint8
    assert loaded.model.get_submodule("lm_head").weight.dtype == torch.float32

    prompts = random_prompts(96, (5, 13, 21))
    runner = load(awkward, LoadOptions(quantization="nf4"))
    expected = generate(_plain(awkward, "nf4", kept), prompts, 20)
    assert answers(runner, prompts, 20) == expected


def test_int8_needs_no_such_exception(awkward: str) -> None:
    loaded = load_model(awkward, LoadOptions(quantization="int8"))
    assert loaded.info.kept_layers == ()
    assert loaded.model.get_submodule("model.layers.0.mlp.down_proj").weight.dtype == torch.int8


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_activations(kind: Quantization, tmp_path: Path, folder: str) -> None:
    """What a GPU uses by default; layers that stay are in that type too."""
    loaded = load_model(folder, LoadOptions(quantization=kind, dtype="bfloat16"))
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([[5, 9, 33, 4]])).logits
    assert loaded.info.dtype == "bfloat16"
    assert logits.dtype == torch.bfloat16
    assert bool(torch.isfinite(logits).all())
