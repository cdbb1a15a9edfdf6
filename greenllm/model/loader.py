"""Loads any decoder-only model that transformers knows, quantized by bitsandbytes if asked.

Contract: weights come from safetensors unless `allow_pickle`; code from the model's folder never
runs unless `trust_remote_code`. Every failure is a `LoadError` of one sentence. Models larger than
one device are placed by accelerate (`device_map="auto"`).

Linear layers whose input width is no multiple of 64, or whose output width is none of 32, do not
suit bitsandbytes' nf4 blocks on CPUs: they stay as they are, and `ModelInfo.kept_layers` names
them.

Not covered: GGUF, GPTQ and AWQ files; encoder-decoders; recurrent layers; attention outside
transformers' interface.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)

from greenllm.model.files import check_folder, eos_ids, licence_of, weight_files
from greenllm.model.info import LoadError, ModelInfo, Quantization
from greenllm.model.options import BUNDLED_PATHS, LoadOptions, own_name, resolve
from greenllm.model.quiet import hush_bitsandbytes
from greenllm.shape import ModelShape

log = logging.getLogger(__name__)

NF4_BLOCK = 64
NF4_ROWS = 32  # the packed layout that bitsandbytes uses on CPUs with AVX-512 bfloat16
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and what is known about it."""

    model: PreTrainedModel
    info: ModelInfo
    shape: ModelShape


@dataclass(frozen=True, slots=True)
class _Plain:
    """Sizes of the unquantized model, counted without allocating it."""

    total: int
    body: int
    head: int
    awkward_layers: tuple[str, ...]


def load_model(name: str, options: LoadOptions) -> LoadedModel:
    """Load a model for inference.

    Raises:
        LoadError: with the reason, in one sentence.
    """
    source = resolve(name)
    config = load_config(source, options)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    if Path(source).is_dir():
        weight_files(Path(source))  # transformers takes the same ones, without a word
    try:
        plain = _count(config, options)
        kept = plain.awkward_layers if options.quantization == "nf4" else ()
        model = _load_weights(source, config, options, device, dtype, kept)
    except Exception as error:
        reason = _one_line(error)
        if isinstance(error, KeyError) and options.attention in error.args:
            reason = f"{config.model_type} does not use transformers' attention interface"
        raise LoadError(f"cannot load {name}: {reason}") from error
    if kept:
        log.warning("nf4 keeps %d layers whose widths do not suit its blocks", len(kept))
    info = _describe(name, source, config, model, plain.total, options)
    return LoadedModel(model, replace(info, kept_layers=kept), _shape(config, plain))


def facts_of(name: str, options: LoadOptions) -> tuple[ModelInfo, ModelShape]:
    """What is known of a model by its files alone, for engines that load it themselves.

    `weight_bytes` is what the dtype makes of the parameters, and `kv_bytes_per_token` too.

    Raises:
        LoadError: with the reason, in one sentence.
    """
    source = resolve(name)
    config = load_config(source, options)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    try:
        plain = _count(config, options)
    except Exception as error:
        raise LoadError(f"cannot load {name}: {_one_line(error)}") from error
    text = config.get_text_config()
    shape = _shape(config, plain)
    kv_width = 2 * text.num_key_value_heads * (shape.attention_width // text.num_attention_heads)
    info = ModelInfo(
        name=own_name(name),
        source=name if name in BUNDLED_PATHS else source,
        architecture=(config.architectures or [config.model_type])[0],
        parameters=plain.total,
        weight_bytes=plain.total * dtype.itemsize,
        quantization=_how_quantized(config, options),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        context_length=_context_length(text, options),
        vocab_size=text.vocab_size,
        eos_token_ids=eos_ids(_generation_values(source), text.to_dict()),
        licence=licence_of(Path(source)),
        created_s=int(time.time()),
    )
    kv_bytes = shape.num_layers * kv_width * dtype.itemsize
    return info, replace(shape, kv_bytes_per_token=kv_bytes)


def _generation_values(source: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = GenerationConfig.from_pretrained(source).to_dict()
    except OSError:
        return {}  # there need not be one
    return values


def _context_length(text: Any, options: LoadOptions) -> int:
    native = getattr(text, "max_position_embeddings", None) or 2048
    if options.max_context is not None and options.max_context > native:
        raise LoadError(f"--max-context {options.max_context} exceeds the model's {native}")
    return options.max_context or int(native)


def load_config(source: str, options: LoadOptions) -> Any:
    """Read a model's config.json and check that it is a decoder-only language model."""
    check_folder(source, allow_pickle=options.allow_pickle)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=options.trust_remote_code)
    except Exception as error:
        raise LoadError(f"cannot load {source}: {_one_line(error)}") from error
    names = list(config.architectures or [])
    causal = any(name.endswith(_CAUSAL_SUFFIXES) for name in names)
    if config.is_encoder_decoder or not causal:
        what = ", ".join(names) or config.model_type
        raise LoadError(f"{source} is not a decoder-only language model ({what})")
    if options.quantization != "none" and getattr(config, "quantization_config", None):
        raise LoadError(f"{source} is already quantized; serve it with --quantize none")
    return config


def _device(asked: str) -> str:
    if asked != "auto":
        if asked.startswith("cuda") and not torch.cuda.is_available():
            raise LoadError(f"--device {asked}: no CUDA device here")
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(asked: str, device: str) -> torch.dtype:
    """Explicit dtype, or what the device computes fast: bf16 on GPUs, fp32 on CPUs."""
    if asked != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[asked]
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def without_weights(config: Any, options: LoadOptions) -> PreTrainedModel:
    """The model's modules on the meta device, which holds no numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=options.trust_remote_code
        )
    return model


def _count(config: Any, options: LoadOptions) -> _Plain:
    """Count parameters on the meta device."""
    model = without_weights(config, options)
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{type(model).__name__} is recurrent, which is not supported")
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    head_size = 0 if head is None else head.weight.numel()
    table = embedding.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = head is not None and head.weight is embedding.weight
    body = total - table - (0 if tied else head_size)
    awkward = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (module.in_features % NF4_BLOCK or module.out_features % NF4_ROWS)
    )
    return _Plain(total, body, head_size, awkward)


def _load_weights(
    source: str,
    config: Any,
    options: LoadOptions,
    device: str,
    dtype: torch.dtype,
    kept: tuple[str, ...],
) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        device_map="auto" if device == "cuda" else device,
        attn_implementation=options.attention,
        quantization_config=_quantization(options.quantization, dtype, kept),
        use_safetensors=None if options.allow_pickle else True,
        trust_remote_code=options.trust_remote_code,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _check_complete(report)
    model.eval()
    return model


def _check_complete(report: Any) -> None:
    """Refuse what transformers would fill with random numbers."""
    absent = sorted(report["missing_keys"])
    if absent:
        raise ValueError(f"the weights lack {len(absent)} tensors, such as {absent[0]}")
    unfit = sorted(str(key[0]) for key in report["mismatched_keys"])
    if unfit:
        raise ValueError(f"{len(unfit)} tensors, such as {unfit[0]}, do not fit config.json")


def _quantization(
    kind: Quantization, dtype: torch.dtype, kept: tuple[str, ...]
) -> BitsAndBytesConfig | None:
    if kind == "none":
        return None
    if kind not in ("int8", "nf4"):
        raise ValueError(f"bitsandbytes has no {kind}")
    hush_bitsandbytes()
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", *kept] if kept else None,
    )


def _shape(config: Any, plain: _Plain) -> ModelShape:
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        body_parameters=plain.body,
        head_parameters=plain.head,
        num_layers=text.num_hidden_layers,
        attention_width=heads * head_dim,
        kv_bytes_per_token=0,
    )


def _describe(
    name: str,
    source: str,
    config: Any,
    model: PreTrainedModel,
    parameters: int,
    options: LoadOptions,
) -> ModelInfo:
    text = config.get_text_config()
    first = next(model.parameters())
    return ModelInfo(
        name=own_name(name),
        source=name if name in BUNDLED_PATHS else source,
        architecture=type(model).__name__,
        parameters=parameters,
        weight_bytes=stored_bytes([*model.parameters(), *model.buffers()]),
        quantization=_how_quantized(config, options),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(first.device),
        context_length=_context_length(text, options),
        vocab_size=text.vocab_size,
        eos_token_ids=eos_ids(model.generation_config.to_dict(), text.to_dict()),
        licence=licence_of(Path(source)),
        created_s=int(time.time()),
    )


def _how_quantized(config: Any, options: LoadOptions) -> str:
    """What was asked for, or how the checkpoint came."""
    given = getattr(config, "quantization_config", None)
    if given is None or options.quantization != "none":
        return options.quantization
    method = given.get("quant_method") if isinstance(given, dict) else given.quant_method
    return str(getattr(method, "value", method))


def stored_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of parameters and buffers with bitsandbytes' constants, as loaded.

    The first step of an int8 layer takes its constants off its weight: ask before.
    """
    size = 0
    for tensor in tensors:
        size += tensor.numel() * tensor.element_size()
        for constant in _constants(tensor):
            size += constant.numel() * constant.element_size()
    return size


def _constants(tensor: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        found += [t for t in (state.absmax, state.code) if isinstance(t, torch.Tensor)]
        state = getattr(state, "state2", None)
    scale = getattr(tensor, "SCB", None)
    return [*found, scale] if isinstance(scale, torch.Tensor) else found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        text = f"not valid JSON: {text}"
    elif isinstance(error, KeyError):
        text = f"unknown name {text}"
    return text if len(text) <= 300 else text[:297] + "..."
