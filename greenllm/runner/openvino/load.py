"""Loads a model into the OpenVINO runner.

Contract: `UnknownArchitectureError` when the graph builder does not know the model, so that the
caller can take another runner; `LoadError` for everything else that is wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.model.decoder_weights import DecoderWeights, WeightBits
from greenllm.model.files import eos_ids, licence_of, local_folder, read_json
from greenllm.model.info import LoadError, ModelInfo
from greenllm.model.options import BUNDLED, LoadOptions, resolve
from greenllm.model.spec import DecoderSpec, UnknownArchitectureError, spec_of
from greenllm.runner.openvino.precision import KvDtype, choose_precision
from greenllm.runner.openvino.runner import OpenVinoRunner

_BITS: dict[str, WeightBits] = {"none": 32, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Keys and values in memory, quantized weights on disk (None: nowhere)."""

    kv_cache_bytes: int
    max_num_seqs: int
    kv_dtype: KvDtype = "auto"
    weights_dir: Path | None = None


def load_openvino_runner(name: str, options: LoadOptions, caches: CacheOptions) -> OpenVinoRunner:
    """Load a model and compile its graph.

    Raises:
        UnknownArchitectureError: the graph builder does not know it.
        LoadError: the model cannot be loaded.
    """
    folder = local_folder(resolve(name))
    config = read_json(folder, "config.json")
    if not config:
        raise LoadError(f"{folder} has no config.json: not a model folder")
    spec = _read_spec(folder, config)
    bits = _BITS[options.quantization]
    precision = choose_precision(bits, options.dtype, caches.kv_dtype)
    weights = DecoderWeights(
        spec,
        folder,
        bits=bits,
        cache_dir=caches.weights_dir,
        float_bytes=precision.floats.bitwidth // 8,
    )
    if not weights.has_usual_names:
        raise UnknownArchitectureError(f"the tensors in {folder} have names of another layout")
    if weights.has_head_beside_tied_table:
        raise UnknownArchitectureError(f"{folder} ties its head and has another one")
    info = _describe(name, folder, config, weights, options, precision.dtype_name)
    runner = OpenVinoRunner(
        weights,
        info,
        precision,
        kv_cache_bytes=caches.kv_cache_bytes,
        max_num_seqs=caches.max_num_seqs,
    )
    weights.save_cache()
    return runner


def _read_spec(folder: Path, config: dict[str, Any]) -> DecoderSpec:
    try:
        spec = spec_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"cannot load {folder}: config.json lacks or garbles {error}") from error
    names = config.get("architectures") or []
    if not any(str(name).endswith("ForCausalLM") for name in names):
        what = ", ".join(names) or "no architecture named"
        raise UnknownArchitectureError(f"{folder} is not a causal language model ({what})")
    if not any(folder.glob("*.safetensors")):
        raise UnknownArchitectureError(f"{folder} has no safetensors weights")
    return spec


def _describe(
    name: str,
    folder: Path,
    config: dict[str, Any],
    weights: DecoderWeights,
    options: LoadOptions,
    dtype: str,
) -> ModelInfo:
    native = weights.spec.context_length
    if options.max_context is not None and options.max_context > native:
        raise LoadError(f"--max-context {options.max_context} exceeds the model's {native}")
    return ModelInfo(
        name=folder.resolve().name if Path(name).is_dir() else name,
        source=BUNDLED if name == BUNDLED else name,
        architecture=str(config["architectures"][0]),
        parameters=weights.num_parameters,
        weight_bytes=0,
        quantization=options.quantization,
        dtype=dtype,
        device="cpu",
        runner="openvino",
        context_length=options.max_context or native,
        vocab_size=weights.spec.vocab_size,
        eos_token_ids=eos_ids(folder, config),
        kept_layers=weights.kept_layers,
        licence=licence_of(folder),
        created_s=int(time.time()),
    )
