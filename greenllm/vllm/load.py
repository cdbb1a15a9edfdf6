"""The vLLM engine from options: what is refused, what is loaded, what is known of it then.

Contract: options that vLLM does not have are refused by name. The account is opened before vLLM is
loaded, so that loading is on it.

Not covered: quantization other than what a checkpoint brings or vLLM does while it loads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from greenllm.config import ConfigError, EngineConfig
from greenllm.core import SamplingParams, Speculation, TextSink
from greenllm.energy.account import Account
from greenllm.energy.policy import CarbonPolicy
from greenllm.model.adapter_setup import make_registry
from greenllm.model.info import ModelInfo
from greenllm.model.loader import facts_of
from greenllm.model.options import LoadOptions, resolve
from greenllm.model.targets import targets_of
from greenllm.shape import ModelShape
from greenllm.vllm.backend import Plan, VllmBackend, make_backend
from greenllm.vllm.engine import Facts, VllmEngine
from greenllm.vllm.schedule import Journal
from greenllm.vllm.versions import require


def check_options(config: EngineConfig) -> None:
    """Refuse what vLLM does not have.

    Raises:
        ConfigError: it names the option.
    """
    for name, holds, reason in (
        ("--runner", config.runner != "auto", "vLLM runs models itself"),
        ("--quantize", config.quantize != "none", "name a checkpoint that is quantized already"),
        (
            "--kv-dtype",
            config.kv_dtype != "auto",
            "vLLM keeps them in the model's dtype",
        ),
        ("--exit-layer", config.exit_layer is not None, "vLLM has no early exits"),
        ("--allow-pickle", config.allow_pickle, "it is for the native engine"),
    ):
        if holds:
            raise ConfigError(f"{name} cannot be combined with --engine vllm: {reason}")


def load_vllm(
    config: EngineConfig,
    account_of: Callable[[ModelShape], Account],
    policy: CarbonPolicy,
    *,
    text_stream: Callable[[SamplingParams], TextSink],
    reserved: Callable[[ModelInfo], Collection[str]],
) -> VllmEngine:
    """Load the configured model into vLLM.

    Raises:
        GreenllmError: an option, the installed vLLM or the model will not do.
    """
    check_options(config)
    version = require()
    options = LoadOptions(
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
    )
    info, shape = facts_of(config.model, options)
    account = account_of(shape)
    journal = Journal()
    backend = make_backend(config, _plan(config, info), journal)
    info = replace(info, runner=f"vllm {version}", weight_bytes=_weight_bytes(backend))
    return VllmEngine(
        backend,
        journal,
        Facts(info, shape, _draft_shape(config, options), _speculation(config), backend.num_blocks),
        account,
        policy,
        text_stream=text_stream,
        clock=time.monotonic,
        adapters=make_registry(config, targets_of(config.model, options), reserved(info)),
    )


def _plan(config: EngineConfig, info: ModelInfo) -> Plan:
    return Plan(
        resolve(config.model),
        info.context_length,
        info.dtype,
        on_gpu=info.device != "cpu",
        draft_source=None if config.draft_model is None else resolve(config.draft_model),
    )


def _speculation(config: EngineConfig) -> Speculation:
    if config.speculative == "off":
        return Speculation("off")
    return Speculation(config.speculative, config.speculative_tokens)


def _draft_shape(config: EngineConfig, options: LoadOptions) -> ModelShape | None:
    if config.speculative != "draft_model" or config.draft_model is None:
        return None
    _, shape = facts_of(config.draft_model, replace(options, max_context=None))
    return shape


def _weight_bytes(backend: VllmBackend) -> int:
    """As vLLM holds them."""
    tensors = {id(tensor): tensor for tensor in backend.model().parameters()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
