"""Loads a model into the OpenVINO runner.

Contract: `UnknownArchitectureError` when the graph builder does not know the model, so that the
caller can take another runner; `LoadError` for everything else that is wrong.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.model.decoder_weights import DecoderWeights, WeightBits
from greenllm.model.files import eos_ids, licence_of, local_folder, read_json
from greenllm.model.info import LoadError, ModelInfo
from greenllm.model.options import LoadOptions, own_name, resolve
from greenllm.model.spec import DecoderSpec, UnknownArchitectureError, spec_of
from greenllm.runner.openvino.precision import KvDtype, Precision, choose_precision
from greenllm.runner.openvino.runner import OpenVinoRunner

log = logging.getLogger(__name__)

_BITS: dict[str, WeightBits] = {"none": 32, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class KvCacheOptions:
    """Keys and values in memory, quantized weights on disk (None: nowhere).

    Without `num_blocks` there are as many blocks as useful, within `kv_cache_bytes`.
    """

    kv_cache_bytes: int
    max_num_seqs: int
    kv_dtype: KvDtype = "auto"
    weights_dir: Path | None = None
    num_blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a runner will be, known before any weight is read."""

    name: str
    folder: Path
    config: dict[str, Any]
    spec: DecoderSpec
    precision: Precision
    options: LoadOptions
    caches: KvCacheOptions


def load_openvino_runner(name: str, options: LoadOptions, caches: KvCacheOptions) -> OpenVinoRunner:
    """Load a model and compile its graph.

    Raises:
        UnknownArchitectureError: the graph builder does not know it.
        LoadError: the model cannot be loaded.
    """
    return build_runner(read_blueprint(name, options, caches))


def read_blueprint(name: str, options: LoadOptions, caches: KvCacheOptions) -> Blueprint:
    """Read a model's config.json and decide how to compute it.

    Raises:
        UnknownArchitectureError: the graph builder does not know it.
        LoadError: the model or the options are wrong.
    """
    folder = local_folder(resolve(name))
    config = read_json(folder, "config.json")
    if not config:
        raise LoadError(f"{folder} has no config.json: not a model folder")
    spec = _read_spec(folder, config)
    precision = choose_precision(_BITS[options.quantization], options.dtype, caches.kv_dtype)
    return Blueprint(name, folder, config, spec, precision, options, caches)


def build_runner(plan: Blueprint) -> OpenVinoRunner:
    """Read the weights and compile the graph.

    Raises:
        UnknownArchitectureError: the tensors are laid out in a way the graph builder does not know.
        LoadError: the weights are not what config.json says.
    """
    folder, precision = plan.folder, plan.precision
    weights = DecoderWeights(
        plan.spec,
        folder,
        bits=precision.bits,
        cache_dir=plan.caches.weights_dir,
        float_bytes=precision.floats.bitwidth // 8,
    )
    if not weights.has_usual_names:
        raise UnknownArchitectureError(f"the tensors in {folder} have names of another layout")
    if weights.has_head_beside_tied_table:
        raise UnknownArchitectureError(f"{folder} ties its head and has another one")
    if extra := weights.unexpected:
        what = f"{len(extra)} tensors, such as {extra[0]}"
        log.warning("%s: config.json does not call for %s: ignored", folder, what)
    return OpenVinoRunner(
        weights,
        _describe(plan, weights),
        precision,
        kv_cache_bytes=plan.caches.kv_cache_bytes,
        max_num_seqs=plan.caches.max_num_seqs,
        num_blocks=plan.caches.num_blocks,
    )


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


def _describe(plan: Blueprint, weights: DecoderWeights) -> ModelInfo:
    name, folder, options = plan.name, plan.folder, plan.options
    native = plan.spec.context_length
    if options.max_context is not None and options.max_context > native:
        raise LoadError(f"--max-context {options.max_context} exceeds the model's {native}")
    return ModelInfo(
        name=own_name(name),
        source=name,
        architecture=str(plan.config["architectures"][0]),
        parameters=weights.num_parameters,
        weight_bytes=0,
        quantization=options.quantization,
        dtype=plan.precision.dtype_name,
        device="cpu",
        runner="openvino",
        context_length=options.max_context or native,
        vocab_size=plan.spec.vocab_size,
        eos_token_ids=eos_ids(read_json(folder, "generation_config.json"), plan.config),
        kept_layers=weights.kept_layers,
        licence=licence_of(folder),
        created_s=int(time.time()),
    )
