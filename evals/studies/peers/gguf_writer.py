"""Writes a Llama checkpoint as GGUF: `python gguf_writer.py FOLDER FILE.gguf`.

Contract: runs in llama.cpp's environment (gguf, numpy), not in greenllm's, so it imports nothing of
greenllm. Weights stay what they are: bfloat16 values as float32 or bfloat16. Query and key rows are
put in the order of llama.cpp's interleaved RoPE.

Not covered: other architectures, sharded checkpoints, RoPE scaling.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and float32 values of each tensor of a bfloat16 safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name} is {about['dtype']}, not BF16")
        first, last = (8 + length + offset for offset in about["data_offsets"])
        halves = np.frombuffer(data[first:last], dtype=np.uint16).astype(np.uint32)
        yield name, (halves << 16).view(np.float32).reshape(about["shape"])


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, *rest = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest[:-1])]}.weight"


def interleave(weights: Any, heads: int) -> Any:
    """Rows of a query or key projection, half-split RoPE to interleaved."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def add_settings(writer: Any, config: dict[str, Any]) -> None:
    """The shape."""
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    """The byte-level BPE; without an end, so that nothing ends early."""
    entries = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in entries])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[number in special] for _, number in entries])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    writer.add_chat_template(template)


def add_weights(writer: Any, path: Path, config: dict[str, Any]) -> None:
    """All tensors: matrices in bfloat16, vectors in float32."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, weights in tensors(path):
        for kind, count in heads.items():
            if f".{kind}." in name:
                weights = interleave(weights, count)
        if weights.ndim == 1:
            writer.add_tensor(gguf_name(name), weights)
            continue
        kind_of = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(
            gguf_name(name), gguf.quants.quantize(weights, kind_of), raw_dtype=kind_of
        )


def main() -> None:
    """Convert."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(target), "llama")
    add_settings(writer, config)
    add_tokenizer(writer, tokenizer)
    add_weights(writer, folder / "model.safetensors", config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
