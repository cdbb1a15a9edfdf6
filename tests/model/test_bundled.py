"""The bundled model: small, whole, quantizable, and able to answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from greenllm.core import SamplingParams, Sequence
from greenllm.model.info import Quantization
from greenllm.model.loader import load_model
from greenllm.model.options import BUNDLED, BUNDLED_PATH, LoadOptions
from greenllm.runner.torch import TorchRunner
from greenllm.tokenizer import Tokenizer, load_tokenizer
from tests.model.driving import ask, drive, load

Chat = Callable[..., tuple[str, Sequence]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Its tokenizer."""
    return load_tokenizer(str(BUNDLED_PATH))


@pytest.fixture(scope="module")
def runners() -> dict[Quantization, TorchRunner]:
    """A runner in each precision."""
    return {
        kind: load(BUNDLED, LoadOptions(quantization=kind), block_size=16, kv_cache_bytes=2**23)
        for kind in ("none", "int8", "nf4")
    }


@pytest.fixture(scope="module")
def chat(runners: dict[Quantization, TorchRunner], tokenizer: Tokenizer) -> Chat:
    """`(question, kind="none", max_tokens=64)`: the greedy answer, and its sequence."""

    def answer(
        question: str, kind: Quantization = "none", max_tokens: int = 64
    ) -> tuple[str, Sequence]:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.chat(messages, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        [seq] = ask(runners[kind], prompt, params)
        drive(runners[kind], [seq])
        return tokenizer.decode(seq.token_ids[seq.prompt_len :]), seq

    return answer


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_it_says_who_it_is(chat: Chat, kind: Quantization) -> None:
    text, seq = chat("Who are you?", kind)
    assert "greenllm" in text.lower()
    assert seq.finish_reason == "stop"


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_it_answers_simple_prompts(chat: Chat, kind: Quantization) -> None:
    """In words, ended by itself; what exactly it says is up to its training."""
    for question in ("Hello!", "What can you do?"):
        text, seq = chat(question, kind)
        assert len(re.findall(r"[a-z]{2,}", text.lower())) >= 2
        assert seq.finish_reason == "stop"
        assert seq.token_ids[-1] in seq.eos_token_ids


def test_a_story_ends_by_itself(chat: Chat) -> None:
    text, seq = chat("Tell me a short story.", max_tokens=300)
    assert seq.finish_reason == "stop"
    assert 30 < seq.num_generated < 300
    assert seq.token_ids[-1] in seq.eos_token_ids
    assert "<|" not in text
    assert len(set(text.split())) > 20


def test_quantized_it_is_smaller(runners: dict[Quantization, TorchRunner]) -> None:
    infos = {kind: runner.info for kind, runner in runners.items()}
    assert infos["nf4"].weight_bytes < infos["int8"].weight_bytes < infos["none"].weight_bytes
    assert len({info.parameters for info in infos.values()}) == 1
    assert infos["nf4"].kept_layers == ()
    assert {info.name for info in infos.values()} == {BUNDLED}


def test_its_files_are_few_and_small() -> None:
    files = [path for path in Path(BUNDLED_PATH).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".csv", ".svg"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}


def test_its_shape_suits_every_kernel(tokenizer: Tokenizer) -> None:
    """Heads of 64 and widths that are multiples of it, for GPUs and for nf4."""
    loaded = load_model(BUNDLED, LoadOptions())
    config = loaded.model.config
    linears = [m for m in loaded.model.modules() if isinstance(m, torch.nn.Linear)]
    assert config.head_dim == 64
    assert len(linears) > 7
    assert all(module.in_features % 64 == 0 for module in linears)
    assert config.vocab_size == tokenizer.vocab_size
    assert set(tokenizer.encode("<|im_end|>", add_special_tokens=False)) <= set(
        loaded.info.eos_token_ids
    )
    assert all(bool(torch.isfinite(p).all()) for p in loaded.model.parameters())


def test_its_config_names_the_exits_it_was_trained_with() -> None:
    config = json.loads((BUNDLED_PATH / "config.json").read_text())
    layers = config["num_hidden_layers"]
    assert {layers // 3, layers // 2} <= set(config["greenllm_exit_layers"])
    assert all(0 < layer < layers for layer in config["greenllm_exit_layers"])
