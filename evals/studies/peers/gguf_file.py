"""A Llama checkpoint as a GGUF file, for llama.cpp, by the `gguf` package.

Contract: weights stay what they are: matrices in bfloat16, vectors in float32. Query and key rows
are put in the order of llama.cpp's interleaved RoPE. Nothing ends an answer early.

Not covered: other architectures, sharded checkpoints, RoPE scaling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from evals.entry import BenchError


def write_gguf(folder: Path, target: Path) -> None:
    """Convert a folder.

    Raises:
        BenchError: the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise BenchError("GGUF files need the package gguf: pip install gguf") from error
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(target), "llama")
    _add_settings(writer, config)
    _add_tokenizer(gguf, writer, folder)
    _add_weights(gguf, writer, folder, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(gguf: Any, writer: Any, folder: Path) -> None:
    """The byte-level BPE; entries that are special are control tokens."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    entries = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in entries])
    writer.add_token_types([kinds[number in special] for _, number in entries])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)


def _add_weights(gguf: Any, writer: Any, folder: Path, config: dict[str, Any]) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {
        "q_proj.weight": config["num_attention_heads"],
        "k_proj.weight": config["num_key_value_heads"],
    }
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    kind = gguf.GGMLQuantizationType.BF16
    for name, weights in load_file(folder / "model.safetensors").items():
        count = heads.get(".".join(name.split(".")[-2:]))
        values = (_interleaved(weights, count) if count else weights).float().numpy()
        short = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 1:
            writer.add_tensor(short, values)
        else:
            writer.add_tensor(short, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _interleaved(weights: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection, half-split RoPE to interleaved."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)
