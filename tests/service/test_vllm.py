"""What only vLLM does, through a real server: quantization, and checkpoints that bring it.

Skipped where `GREENLLM_ENGINES` does not name vllm; see `make test-vllm`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import greenllm

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

pytestmark = [
    pytest.mark.skipif(
        "vllm" not in os.environ.get("GREENLLM_ENGINES", ""), reason="vllm is not asked for"
    ),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
DRAFT = BUNDLED.with_name("bundled_draft")
OPTIONS = ("--engine", "vllm", "--kv-cache-gb", "0.2")
W8A8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "all": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token",
                "dynamic": True,
            },
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def in_eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a checkpoint of 8-bit weights, whose inputs are rounded as they come."""
    folder = tmp_path_factory.mktemp("models") / "w8a8"
    shutil.copytree(BUNDLED, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(BUNDLED / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((BUNDLED / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": W8A8}))
    return folder


def card_of(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/v1/models").json()["data"][0]
    return found


def answer(server: Server, model: str = "bundled") -> dict[str, Any]:
    body = server.chat("Who are you?", temperature=0, max_tokens=24) | {"model": model}
    found: dict[str, Any] = server.http.post("/v1/chat/completions", json=body).json()
    return found


def said(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


def check_adapters(server: Server, model: str, adapter: Path) -> None:
    """They go with quantized layers, and leave others alone."""
    before = said(answer(server, model))
    body = {"lora_name": "fox", "lora_path": str(adapter)}
    server.http.post("/v1/load_lora_adapter", json=body).raise_for_status()
    with ThreadPoolExecutor(2) as pool:
        base, changed = pool.map(lambda name: said(answer(server, name)), (model, "fox"))
    assert base == before
    assert changed != base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("shelf") / "fox"
    return make_adapter(BUNDLED, folder, seed=1, std=0.2, r=8, target_modules="all-linear")


# One byte or half of one for each of 4.7 million weights, scales, and the table as it was.
@pytest.mark.parametrize(
    ("kind", "dtype", "num_bytes"), [("int8", "float32", 5_627_904), ("nf4", "bfloat16", 3_062_400)]
)
def test_weights_are_quantized_while_loading(
    kind: str, dtype: str, num_bytes: int, start_server: StartServer, adapter: Path
) -> None:
    options = ["--quantize", kind]
    if kind == "int8":
        options += ["--speculative", "draft_model", "--draft-model", str(DRAFT)]
    with start_server(*OPTIONS, *options, "--adapter-dirs", str(adapter.parent)) as server:
        card = card_of(server)
        assert (card["quantization"], card["dtype"], card["parameters"]) == (kind, dtype, 4_920_000)
        assert card["weight_bytes"] == num_bytes
        assert card["unquantized_layers"] == []
        body = answer(server)
        assert "language model" in said(body)
        energy = body["usage"]["energy"]
        assert (energy["accepted_tokens"] > 0) == (kind == "int8")
        check_adapters(server, "bundled", adapter)


def test_a_quantized_checkpoint_is_served_and_named(
    in_eight_bits: Path, start_server: StartServer, adapter: Path
) -> None:
    options = (str(in_eight_bits), *OPTIONS, "--adapter-dirs", str(adapter.parent))
    with start_server(*options) as server:
        card = card_of(server)
        assert (card["quantization"], card["dtype"]) == ("compressed-tensors", "float32")
        assert 4_700_000 + 786_432 < card["weight_bytes"] < 6_000_000
        assert "language model" in said(answer(server, "w8a8"))
        check_adapters(server, "w8a8", adapter)


def write_head(folder: Path) -> Path:
    """An EAGLE head that nobody has trained: the model's last layer, on its last state alone."""
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((BUNDLED / "config.json").read_text())
    weights, last = load_file(BUNDLED / "model.safetensors"), config["num_hidden_layers"] - 1
    size, prefix = config["hidden_size"], f"model.layers.{last}."
    tensors = {
        name.replace(prefix, "layers.0."): weight.clone()
        for name, weight in weights.items()
        if name.startswith(prefix) and not name.endswith("input_layernorm.weight")
    }
    tensors["fc.weight"] = torch.cat([torch.zeros(size, size), torch.eye(size)], dim=1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    return folder


def test_an_eagle_head_guesses_and_changes_no_answer(
    start_server: StartServer, tmp_path: Path
) -> None:
    head = write_head(tmp_path / "head")
    guessing = ("--speculative", "draft_model", "--draft-model", str(head))
    texts = ("Who are you?", "Tell me a short story.", "What is 12 + 30?")
    with start_server(*OPTIONS) as plain:
        expected = [said(ask(plain, text)) for text in texts]
    with start_server(*OPTIONS, *guessing) as server:
        with ThreadPoolExecutor(len(texts)) as pool:
            bodies = list(pool.map(lambda text: ask(server, text), texts))
        assert [said(body) for body in bodies] == expected
        energy = [body["usage"]["energy"] for body in bodies]
        assert all(one["drafted_tokens"] > 0 for one in energy)
        assert all(one["draft_joules"] > 0 for one in energy)
        server.session()


def ask(server: Server, text: str, model: str = "bundled", **more: Any) -> dict[str, Any]:
    body = server.chat(text, **{"temperature": 0, "max_tokens": 40, **more}) | {"model": model}
    found: dict[str, Any] = server.http.post("/v1/chat/completions", json=body).json()
    return found


@pytest.fixture(scope="module")
def four_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that can be divided in two, which the bundled one cannot."""
    folder = tmp_path_factory.mktemp("models") / "four"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors", "exits*"))
    config = json.loads((BUNDLED / "config.json").read_text())
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, **heads}))
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    made.save_pretrained(folder)
    return folder


def test_a_model_is_spread_over_two_processes(
    four_heads: Path, start_server: StartServer, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(four_heads, tmp_path / "fox", std=0.5, target_modules="all-linear")
    options = (str(four_heads), *OPTIONS, "--adapter-dirs", str(adapter.parent))
    texts = ("Who are you?", "Tell me a short story.", "What is 12 + 30?")
    with start_server(*options) as alone:
        expected = [ask(alone, text, "four") for text in texts]
        one = card_of(alone)
    guessing = ("--speculative", "prompt_lookup", "--tensor-parallel", "2")
    with start_server(*options, *guessing) as server:
        with ThreadPoolExecutor(len(texts)) as pool:
            found = list(pool.map(lambda text: ask(server, text, "four"), texts))
        assert [said(body) for body in found] == [said(body) for body in expected]
        assert len({said(body) for body in found}) == len(texts)
        assert 0 < card_of(server)["weight_bytes"] - one["weight_bytes"] < one["weight_bytes"]
        check_adapters(server, "four", adapter)
        hot = {"temperature": 1.0, "seed": 5, "ignore_eos": True}
        assert said(ask(server, texts[0], "four", **hot)) == said(
            ask(server, texts[0], "four", **hot)
        )
        server.session()
