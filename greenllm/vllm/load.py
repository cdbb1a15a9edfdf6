"""The vLLM engine from options: what is refused, what is loaded, what is known of it then.

Contract: options that vLLM does not have are refused by name. The account is opened before vLLM is
loaded, so that loading is on it.

Not covered: pipelines of devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from greenllm.config import ConfigError
from greenllm.core import AnswerSink, SamplingParams, Speculation
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.model.adapter_setup import make_registry
from greenllm.model.info import ModelInfo
from greenllm.model.loader import facts_of
from greenllm.model.options import LoadOptions, resolve
from greenllm.model.targets import targets_of
from greenllm.options import EngineConfig
from greenllm.shape import ModelShape
from greenllm.vllm.backend import BackendPlan, make_backend
from greenllm.vllm.engine import Facts, VllmEngine
from greenllm.vllm.heads import draft_method_of
from greenllm.vllm.quantization import Survey, check_quantization, dtype_for
from greenllm.vllm.schedule import Journal
from greenllm.vllm.versions import require


def check_options(config: EngineConfig) -> None:
    """Refuse what vLLM does not have.

    Raises:
        ConfigError: it names the option.
    """
    for name, holds, reason in (
        ("--runner", config.runner != "auto", "vLLM runs models itself"),
        (
            "--kv-dtype",
            config.kv_dtype != "auto",
            "vLLM keeps them in the model's dtype",
        ),
        ("--exit-layer", config.exit_layer is not None, "vLLM has no early exits"),
        ("--threads", config.threads == "eco", "give a number, or auto for all processors"),
        ("--allow-pickle", config.allow_pickle, "it is for the native engine"),
    ):
        if holds:
            raise ConfigError(f"{name} cannot be combined with --engine vllm: {reason}")


def load_vllm(
    config: EngineConfig,
    account_of: Callable[[ModelShape, str], Account],
    policy: CarbonPolicy,
    *,
    text_stream: Callable[[SamplingParams], AnswerSink],
    reserved: Callable[[ModelInfo], Collection[str]],
) -> VllmEngine:
    """Load the configured model into vLLM.

    Raises:
        GreenllmError: an option, the installed vLLM or the model will not do.
    """
    check_options(config)
    version = require()
    options = LoadOptions(
        quantization=config.quantize,
        dtype=dtype_for(config),
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
    )
    info, shape = facts_of(config.model, options)
    check_quantization(config, info.device)
    account = account_of(shape, info.device)
    journal = Journal()
    backend = make_backend(config, _plan(config, info), journal)
    info = _as_loaded(replace(info, runner=f"vllm {version}"), backend.survey())
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


def _plan(config: EngineConfig, info: ModelInfo) -> BackendPlan:
    draft = None if config.draft_model is None else resolve(config.draft_model)
    return BackendPlan(
        resolve(config.model),
        info.context_length,
        info.dtype,
        on_gpu=info.device != "cpu",
        draft_source=draft,
        draft_method="draft_model" if draft is None else draft_method_of(draft),
    )


def _speculation(config: EngineConfig) -> Speculation:
    if config.speculative == "off":
        return Speculation("off")
    return Speculation(config.speculative, config.speculative_tokens)


def _draft_shape(config: EngineConfig, options: LoadOptions) -> ModelShape | None:
    if config.speculative != "draft_model" or config.draft_model is None:
        return None
    plain = replace(options, quantization="none", max_context=None)
    _, shape = facts_of(config.draft_model, plain)
    return shape


def _as_loaded(info: ModelInfo, found: Survey) -> ModelInfo:
    """With what vLLM holds, if it has done what was asked or what the checkpoint says."""
    if info.quantization == "none":
        return replace(info, weight_bytes=found.num_bytes)
    found.require_quantized(info.name)
    return replace(info, weight_bytes=found.num_bytes, kept_layers=found.kept)
