"""Every model that cannot be served is refused with one sentence, and code never runs unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from greenllm.model.info import LoadError
from greenllm.model.loader import load_config, load_model
from greenllm.model.options import LoadOptions
from tests.model.driving import answers, load

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny: str, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def _refusal(source: str | Path, options: LoadOptions | None = None) -> str:
    with pytest.raises(LoadError) as caught:
        load(source, options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert 10 < len(text) < 600
    return text


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _pickle(folder: Path, content: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_the_unbroken_folder_loads(folder: Path) -> None:
    info = load(folder).info
    assert info.name == "model"
    assert info.source == str(folder)
    assert info.architecture == "LlamaForCausalLM"
    assert (info.device, info.dtype, info.quantization) == ("cpu", "float32", "none")
    assert (info.context_length, info.vocab_size, info.licence) == (128, 96, None)
    assert info.eos_token_ids == frozenset()


def test_identity_comes_from_the_folder(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 7]}))
    info = load_model(str(folder), LoadOptions(max_context=100)).info
    assert info.licence == "mit"
    assert info.eos_token_ids == frozenset({2, 7})
    assert info.context_length == 100


@pytest.mark.parametrize("name", ["", "./", "~/"])
def test_no_folder(name: str) -> None:
    assert "no folder" in _refusal(f"{name}nothing-here")


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "no folder" in _refusal(folder / "config.json")


def test_an_unknown_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refusal = _refusal("no-such-owner/no-such-model")
    assert "cannot load no-such-owner/no-such-model: huggingface.co cannot be reached" in refusal
    assert "HF_HUB_OFFLINE is set" in refusal


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in _refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe\x00"])
def test_a_broken_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert _refusal(folder).startswith(f"cannot load {folder}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nonsense"},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"hidden_act": "nonsense"},
        {"rope_parameters": {"rope_type": "nonsense"}},
        {"eos_token_id": "x"},
        {"max_position_embeddings": None},
        {"architectures": None},
        {"architectures": ["LlamaForSequenceClassification"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_impossible_config(folder: Path, changes: dict[str, Any]) -> None:
    _change_config(folder, **changes)
    assert _refusal(folder)


def test_a_broken_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[]")
    assert _refusal(folder)


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: T5ForConditionalGeneration(
            T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
        ).save_pretrained(folder),
        lambda folder: BertForMaskedLM(
            BertConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(folder),
    ],
    ids=["t5", "bert"],
)
def test_not_a_decoder(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path)
    assert "not a decoder-only language model" in _refusal(tmp_path)


def test_a_head_on_an_encoder(tmp_path: Path) -> None:
    """BERT with a causal head and attention to both sides."""
    config = BertConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    assert "not causal" in _refusal(tmp_path)


def test_truncated_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "header" in _refusal(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 100, (50).to_bytes(8, "little") + b"x" * 100],
    ids=["empty", "huge header", "no JSON"],
)
def test_garbage_weights(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    assert "header" in _refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "model.safetensors" in _refusal(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "shard.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "shard.safetensors" in _refusal(folder)


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    """transformers would fill them with random numbers and warn."""
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert f"lack 1 tensors, such as {name}" in _refusal(folder)
    assert "lack 1" in _refusal(folder, LoadOptions(quantization="nf4"))


def test_tensors_of_the_wrong_shape(folder: Path) -> None:
    _change_config(folder, intermediate_size=256)
    assert "do not fit config.json" in _refusal(folder)


def test_weights_without_a_format_field_load(folder: Path, tiny_runner: Any) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert answers(load(folder), [[5, 9]], 4) == answers(tiny_runner, [[5, 9]], 4)


def test_pickled_weights_need_leave(folder: Path, tiny_runner: Any) -> None:
    _pickle(folder, load_file(folder / WEIGHTS))
    assert "--allow-pickle" in _refusal(folder)
    runner = load(folder, LoadOptions(allow_pickle=True))
    assert answers(runner, [[5, 9]], 4) == answers(tiny_runner, [[5, 9]], 4)


class _Payload:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickle_with_a_payload_never_runs(
    folder: Path, tmp_path: Path, allow_pickle: bool
) -> None:
    _pickle(folder, {"weight": _Payload(tmp_path / "ran")})
    assert _refusal(folder, LoadOptions(allow_pickle=allow_pickle))
    assert not (tmp_path / "ran").exists()


def test_code_of_the_model_runs_only_on_request(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_runner: Any
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n"
        '    model_type = "own"\n'
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "from .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    _change_config(folder, model_type="own", auto_map=names, architectures=["OwnForCausalLM"])
    assert "custom code" in _refusal(folder)
    runner = load(folder, LoadOptions(trust_remote_code=True))
    assert runner.info.architecture == "OwnForCausalLM"
    assert answers(runner, [[5, 9]], 4) == answers(tiny_runner, [[5, 9]], 4)


def test_too_long_a_context(folder: Path) -> None:
    text = _refusal(folder, LoadOptions(max_context=129))
    assert text == "--max-context 129 exceeds the model's 128"


def test_too_short_a_context(folder: Path) -> None:
    assert "--max-context" in _refusal(folder, LoadOptions(max_context=2))


def test_too_small_a_cache(tiny: str) -> None:
    with pytest.raises(LoadError, match="--kv-cache-gb"):
        load(tiny, kv_cache_bytes=1000)
    runner = load(tiny, kv_cache_bytes=40 * 256)
    assert runner.num_blocks == 5
    assert runner.info.context_length == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_device(folder: Path, device: str) -> None:
    text = _refusal(folder, LoadOptions(device=device))
    assert text == f"--device {device}: no CUDA device here"


def test_an_unknown_device(folder: Path) -> None:
    assert "nonsense" in _refusal(folder, LoadOptions(device="nonsense"))


def test_quantized_twice(folder: Path, tmp_path: Path) -> None:
    """A folder that is quantized already is served as it is, or refused."""
    model = load_model(str(folder), LoadOptions(quantization="nf4")).model
    model.save_pretrained(tmp_path / "quantized")
    for kind in ("nf4", "int8"):
        text = _refusal(tmp_path / "quantized", LoadOptions(quantization=kind))
        assert "already quantized" in text
    assert load(tmp_path / "quantized").info.weight_bytes < load(folder).info.weight_bytes


def test_reading_a_config_loads_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert load_config(str(folder), LoadOptions()).num_hidden_layers == 2
