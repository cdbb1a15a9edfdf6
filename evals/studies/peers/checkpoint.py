"""The model that all peers serve: SmolLM2-135M's shape with random weights; and one of 1.1B.

Contract: the same seed gives the same weights. Speed does not depend on what weights say, so random
ones do; answers are noise, and nothing about quality may be read from them. There is no
end-of-sequence token, so that answers have the length asked for. `w8a8` is the same model with int8
weights per output channel in the compressed-tensors layout, as vLLM reads it.

Not covered: other architectures.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from evals.studies.peers.words import VOCABULARY, write_tokenizer

CONTEXT = 2048
ROPE_THETA = 100_000.0
SEED = 20_260_135
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}


def config_135m() -> LlamaConfig:
    """SmolLM2-135M's shape."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def config_1b() -> LlamaConfig:
    """TinyLlama-1.1B's layers over the same vocabulary: 1.07 billion parameters."""
    config = config_135m()
    config.update(
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        }
    )
    return config


def write_checkpoint(folder: Path, config: LlamaConfig) -> None:
    """Write a model in bfloat16 with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["rope_theta"] = ROPE_THETA  # where readers of older layouts look
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    write_tokenizer(folder, CONTEXT)


def write_w8a8(source: Path, folder: Path) -> None:
    """Write the same model with int8 weights, rounded to nearest per output channel."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight.float() / scale).round().clamp(-127, 127).to(torch.int8)
        tensors[name.removesuffix("weight") + "weight_scale"] = scale.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = W8A8
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
