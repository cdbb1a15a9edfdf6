"""Before OpenVINO is trusted: a tiny graph must say what the torch runner says.

The paged attention operation is internal to OpenVINO, so an upgrade can change what it computes. A
random two-layer model runs a prompt in chunks and mixed steps through both runners in float32; the
logits must agree. A pass is remembered on disk, by OpenVINO's, torch's and this package's version
and the CPU.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from greenllm import __version__
from greenllm.core import Chunk, GreenllmError, Request, SamplingParams, Sequence, sequences_of
from greenllm.energy.hardware import read_cpu_info
from greenllm.model.options import LoadOptions

TOLERANCE = 1e-3
_CONTEXT = 128
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": _CONTEXT,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class SelfCheckError(GreenllmError):
    """OpenVINO does not compute what it should here."""


@dataclass(frozen=True, slots=True)
class _Step:
    """Chunks of the three prompts that run together: (prompt, start, tokens)."""

    parts: tuple[tuple[int, int, int], ...]


_STEPS = (
    _Step(((0, 0, 33), (1, 0, 7))),
    _Step(((1, 7, 1), (0, 33, 30), (2, 0, 40))),
    _Step(((0, 63, 1), (1, 8, 1), (2, 40, 4))),
)
_LENGTHS = (64, 9, 44)


def check_openvino(cache_dir: Path | None) -> None:
    """Compare the runners, or recall that they agreed.

    Raises:
        SelfCheckError: they differ, or OpenVINO failed.
    """
    passed = cache_dir / "selfcheck" / f"{_key()}.json" if cache_dir else None
    if passed is not None and passed.is_file():
        return
    difference = _largest_difference()
    if not difference <= TOLERANCE:
        raise SelfCheckError(
            f"OpenVINO {version('openvino')} differs from torch by {difference:.2g} in logits"
        )
    if passed is not None:
        try:
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.write_text(json.dumps({"largest_difference": difference}), encoding="utf-8")
        except OSError:
            return  # a folder that cannot be written costs the check again, nothing else


def _key() -> str:
    parts = (__version__, version("openvino"), version("torch"), read_cpu_info().model_name)
    return hashlib.sha256("|".join([*parts, platform.machine()]).encode()).hexdigest()[:24]


def _largest_difference() -> float:
    from greenllm.runner.openvino.load import CacheOptions, load_openvino_runner
    from greenllm.runner.torch import load_torch_runner

    with tempfile.TemporaryDirectory() as name:
        write_tiny_model(Path(name))
        options = LoadOptions(dtype="float32", device="cpu")
        reference = load_torch_runner(name, options, kv_cache_bytes=2**22, max_num_seqs=4)
        try:
            tested = load_openvino_runner(name, options, CacheOptions(2**22, 4))
            ours = _logits(tested.logits, tested.block_size)
        except Exception as error:
            raise SelfCheckError(f"OpenVINO failed: {error}") from error
        return float((ours - _logits(reference.logits, reference.block_size)).abs().max())


def write_tiny_model(folder: Path) -> None:
    """A random two-layer Llama with a checkpoint of its own."""
    generator = torch.Generator().manual_seed(7)
    hidden, inner, vocabulary = 64, 96, 97
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (64, hidden),
            f"{prefix}.self_attn.k_proj.weight": (32, hidden),
            f"{prefix}.self_attn.v_proj.weight": (32, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, 64),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.15 if len(shape) > 1 else 0.1)
        + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")


def _logits(compute: object, block_size: int) -> torch.Tensor:
    """All rows' logits of every step, one below the other."""
    sequences = [_sequence(index, block_size) for index in range(len(_LENGTHS))]
    found: list[torch.Tensor] = []
    for step in _STEPS:
        # Single tokens first, as the torch runner packs them.
        parts = sorted(step.parts, key=lambda part: part[2] > 1)
        chunks = [Chunk(sequences[p], start, count, samples=True) for p, start, count in parts]
        rows = [range(chunk.num_tokens) for chunk in chunks]
        found.append(compute(chunks, rows).clone())  # type: ignore[operator]
    return torch.cat(found)


def _sequence(index: int, block_size: int) -> Sequence:
    prompt = tuple((7 * index + 13 * place) % 97 for place in range(_LENGTHS[index]))
    request = Request(f"check-{index}", (prompt,), SamplingParams(temperature=0), model="")
    seq = sequences_of(request, eos_token_ids=frozenset(), max_len=_CONTEXT)[0]
    per_sequence = -(-_CONTEXT // block_size)
    # Backwards, so that a runner which ignores block tables is caught.
    seq.block_table = list(range((index + 1) * per_sequence - 1, index * per_sequence - 1, -1))
    return seq
