"""Before OpenVINO is trusted with a model: a tiny one like it must say what the torch runner says.

The paged attention operation is internal to OpenVINO, so an upgrade can change what it computes. A
random model runs prompts in chunks and mixed steps through OpenVINO, with the weights, arithmetic,
keys and values that will be used, and through torch in float32, on the numbers that the quantized
weights stand for. The logits must agree, as closely as the number formats allow. A pass is
remembered on disk, by what was checked, the versions and the CPU.

The random model has two layers and few numbers, and what changes the graph or its kernels in the
served one: the family, head norms, biases, a tied head, rotary angles, sliding windows, the width
of a head, and whether heads share keys.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from greenllm import __version__
from greenllm.core import Chunk, GreenllmError, Request, SamplingParams, Sequence, sequences_of
from greenllm.energy.hardware import read_cpu_info
from greenllm.model.decoder_weights import DecoderWeights, WeightBits
from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from greenllm.model.quantize import QuantizedMatrix
from greenllm.model.spec import DecoderSpec, spec_of
from greenllm.runner.openvino.machine import TESTED, is_tested
from greenllm.runner.passes import Passed, has_passed, remember

if TYPE_CHECKING:
    from greenllm.runner.openvino.load import Blueprint
    from greenllm.runner.openvino.precision import Precision

log = logging.getLogger(__name__)

# Root mean square of the differences, relative to that of the logits. What rounds allows twice
# what was measured at most over the families and head widths of 16 to 128 (bfloat16 0.024, 8-bit
# keys and values 0.023, quantized weights with the rounding of activations 0.044); a window that
# is ignored makes 0.8. Without any rounding the runners are 2e-6 apart.
_EXACT = 1e-4
_BFLOAT16 = 0.05
_QUANTIZED = 0.09
_KV_8_BITS = 0.05
_KV_BYTES = 2**24


class SelfCheckError(GreenllmError):
    """OpenVINO does not compute what it should here."""


# Steps of chunks of the three prompts that run together: (prompt, start, tokens).
_STEPS = (
    ((0, 0, 33), (1, 0, 7)),
    ((1, 7, 1), (0, 33, 30), (2, 0, 40)),
    ((0, 63, 1), (1, 8, 1), (2, 40, 4)),
)
_LENGTHS = (64, 9, 44)
CONTEXT = 128
VOCABULARY = 97
_WINDOW = 24
_KEPT = (
    "attention_bias",
    "hidden_act",
    "mlp_bias",
    "model_type",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
)
_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def warn_if_untested() -> None:
    """Say so when the installed OpenVINO is not one that this package was tested with."""
    found = version("openvino")
    if not is_tested(found):
        log.warning(
            "OpenVINO %s is installed, tested was %s: it is used where the self-check passes",
            found,
            TESTED,
        )


def check_openvino(cache_dir: Path | None, plan: Blueprint) -> None:
    """Compare the runners as the plan will use them, or recall that they agreed.

    Raises:
        SelfCheckError: they differ, or OpenVINO failed.
    """
    config = shrink(plan.config, plan.spec)
    key = _key(config, plan)
    if cache_dir is not None and has_passed(cache_dir, key):
        return
    difference, allowed = measure(config, plan), tolerance(plan.precision)
    if not difference <= allowed:
        raise SelfCheckError(
            f"OpenVINO {version('openvino')} differs from torch by {difference:.2g} of the logits"
            f" (allowed {allowed:.2g}) for {plan.spec.family} with {_formats(plan)}"
        )
    if cache_dir is not None:
        about = (plan.spec.family, _formats(plan), version("openvino"))
        passed = Passed(*about, difference, allowed, _shape(plan.spec))
        remember(cache_dir, key, passed)


def tolerance(precision: Precision) -> float:
    """How far apart the logits may be, relative to their size; roundings are independent."""
    return math.hypot(
        _EXACT,
        _BFLOAT16 if precision.dtype_name == "bfloat16" else 0,
        _QUANTIZED if precision.bits != 32 else 0,
        _KV_8_BITS if precision.kv_name == "u8" else 0,
    )


def _formats(plan: Blueprint) -> str:
    precision = plan.precision
    return f"{plan.options.quantization} weights, {precision.dtype_name}, kv {precision.kv_name}"


def _shape(spec: DecoderSpec) -> str:
    """What the tiny model has of the real one, as far as people tell models apart by it."""
    shared = ", shared keys" if spec.num_kv_heads < spec.num_heads else ""
    windows = ", sliding windows" if any(spec.windows) else ""
    return f"heads of {spec.head_dim}{shared}{windows}, context {spec.context_length}"


def _key(config: Mapping[str, Any], plan: Blueprint) -> str:
    parts = [
        json.dumps(config, sort_keys=True),
        _formats(plan),
        *(__version__, version("openvino"), version("torch"), version("transformers")),
        *(read_cpu_info().model_name, platform.machine()),
    ]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def measure(config: Mapping[str, Any], plan: Blueprint) -> float:
    """How far the runners' logits are apart on the tiny model, relative to their size.

    Raises:
        SelfCheckError: one of them failed.
    """
    from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner

    precision = plan.precision
    options = LoadOptions(
        plan.options.quantization, precision.dtype_name, "cpu", max_context=CONTEXT
    )
    caches = KvCacheOptions(_KV_BYTES, len(_LENGTHS), precision.kv_name)
    with tempfile.TemporaryDirectory() as name:
        given, restored = Path(name) / "given", Path(name) / "restored"
        _write_tiny(given, config)
        _write_restored(given, restored, precision.bits)
        expected = _reference(restored, options)
        try:
            tested = load_openvino_runner(str(given), options, caches)
            ours = _logits(tested.logits, tested.block_size)
        except Exception as error:
            raise SelfCheckError(f"OpenVINO failed: {error}") from error
    return float((ours - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def _reference(folder: Path, options: LoadOptions) -> Tensor:
    # Only here, because it imports transformers' models, which takes seconds.
    from greenllm.runner.torch import load_torch_runner

    plain = replace(options, quantization="none", dtype="float32")
    try:
        runner = load_torch_runner(
            str(folder), plain, kv_cache_bytes=_KV_BYTES, max_num_seqs=len(_LENGTHS)
        )
    except LoadError as error:
        raise SelfCheckError(f"torch cannot compute what to compare with: {error}") from error
    return _logits(runner.logits, runner.block_size)


def _logits(compute: Callable[[list[Chunk], list[range]], Tensor], block_size: int) -> Tensor:
    """All rows' logits of every step, one below the other."""
    sequences = [_sequence(index, block_size) for index in range(len(_LENGTHS))]
    found: list[Tensor] = []
    for step in _STEPS:
        # Single tokens first, as the torch runner packs them.
        parts = sorted(step, key=lambda part: part[2] > 1)
        chunks = [Chunk(sequences[p], start, count, samples=True) for p, start, count in parts]
        rows = [range(chunk.num_tokens) for chunk in chunks]
        found.append(compute(chunks, rows).clone())
    return torch.cat(found)


def _sequence(index: int, block_size: int) -> Sequence:
    prompt = tuple((7 * index + 13 * place) % VOCABULARY for place in range(_LENGTHS[index]))
    request = Request(f"check-{index}", (prompt,), SamplingParams(temperature=0), model="")
    seq = sequences_of(request, eos_token_ids=frozenset(), max_len=CONTEXT)[0]
    per_sequence = -(-CONTEXT // block_size)
    # Backwards, so that a runner which ignores block tables is caught.
    seq.block_table = list(range((index + 1) * per_sequence - 1, index * per_sequence - 1, -1))
    return seq


def shrink(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """The config.json of a tiny model with the features of this one."""
    shares_keys = spec.num_kv_heads < spec.num_heads
    return {
        **{name: config[name] for name in _KEPT if name in config},
        **_SIZES,
        "architectures": list(config["architectures"]),
        "max_position_embeddings": max(CONTEXT, spec.context_length),
        "num_key_value_heads": 2 if shares_keys else 4,
        "head_dim": spec.head_dim,
        "sliding_window": _WINDOW if any(spec.windows) else None,
        "max_window_layers": 1,
    }


def _write_tiny(folder: Path, config: Mapping[str, Any]) -> None:
    """Save a model of random weights."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in spec_of(config).tensors.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = noise * 0.15 if len(shape) > 1 else noise * 0.1 + ("norm" in name)
    _save(folder, config, tensors)


def _write_restored(given: Path, folder: Path, bits: WeightBits) -> None:
    """Save the model in `given` with the numbers that its quantized matrices stand for."""
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    spec = spec_of(config)
    weights = DecoderWeights(spec, given, bits=bits, cache_dir=None)
    tensors = {}
    for name, shape in spec.tensors.items():
        found = weights.matrix(name) if len(shape) > 1 else weights.vector(name)
        plain = found.restored() if isinstance(found, QuantizedMatrix) else found
        tensors[name] = torch.from_numpy(plain)
    _save(folder, config, tensors)


def _save(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
