"""Which runner serves a model: OpenVINO on CPUs where it knows the architecture, else torch.

`auto` takes the first of `RUNNERS` that can, and warns where a slower one is taken because a model
could not be loaded. A runner that was asked for by name is never replaced: what it cannot do is a
`LoadError`. A new runner is its package and an entry here; `EngineConfig.runner` lists the names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from greenllm.core import GreenllmError
from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from greenllm.model.spec import UnknownArchitectureError
from greenllm.options import EngineConfig
from greenllm.runner.base import Runner
from greenllm.runner.draft_model import DraftModel, check_same_vocabulary
from greenllm.runner.openvino.machine import TESTED
from greenllm.runner.selfcheck import SelfCheckError, check_openvino, warn_if_untested

log = logging.getLogger(__name__)

_TORCH_BLOCK = 16


class CannotServeError(GreenllmError):
    """This runner cannot serve the model; another may."""


@dataclass(frozen=True, slots=True)
class RunnerKind:
    """`refusal` says why options or machine rule a runner out; None when they do not.

    `load` takes the options and the number of KV blocks, None for as many as useful within
    `--kv-cache-gb`. It raises `CannotServeError`, or `LoadError` where no other should be tried.
    """

    refusal: Callable[[EngineConfig], str | None]
    load: Callable[[EngineConfig, int | None], Runner]


def load_runner(config: EngineConfig, num_blocks: int | None = None) -> Runner:
    """Load the configured model into the runner that suits it, with a cache of so many blocks.

    Raises:
        LoadError: the model cannot be loaded, or the options contradict each other.
    """
    if config.eager and not _is_on_cuda(config):
        raise LoadError("--eager is for CUDA devices: nowhere else are there graphs to do without")
    if config.quantize == "fp8":
        raise LoadError("--quantize fp8 is vLLM's, on CUDA devices: --engine vllm")
    reasons: dict[str, str] = {}
    for name, kind in RUNNERS.items():
        if config.runner not in ("auto", name):
            reasons[name] = f"--runner {config.runner} was asked for"
        elif (refusal := kind.refusal(config)) is not None:
            reasons[name] = refusal
        else:
            try:
                return kind.load(config, num_blocks)
            except CannotServeError as error:
                reasons[name] = str(error)
                if config.runner == "auto":
                    log.warning("a slower runner than %s is used: %s", name, error)
    told = "; ".join(f"the {name} runner: {reason}" for name, reason in reasons.items())
    raise LoadError(f"no runner can serve {config.model}: {told}")


def load_draft_model(config: EngineConfig, target: Runner, folder: str) -> DraftModel:
    """Load a draft model for `target`, the runner of the configured model.

    Its steps run on one thread until its `runner` is told otherwise.

    Raises:
        LoadError: it cannot be loaded, or its vocabulary is another.
    """
    check_same_vocabulary(config.model, folder, trust_remote_code=config.trust_remote_code)
    own = replace(
        config,
        model=folder,
        runner="torch" if target.info.runner == "torch" else "auto",
        block_size=target.block_size,
        max_context=None,
    )
    try:
        runner = load_runner(own, target.num_blocks)
    except LoadError as error:
        raise LoadError(f"--draft-model {folder}: {error}") from error
    ours, theirs = target.info.vocab_size, runner.info.vocab_size
    if ours != theirs:
        raise LoadError(f"--draft-model {folder}: its logits are for {theirs} tokens, not {ours}")
    return DraftModel(runner, runner.as_drafter())


def _is_on_cuda(config: EngineConfig) -> bool:
    is_found = config.device == "auto" and torch.cuda.is_available()
    return is_found or config.device.startswith("cuda")


def _options(config: EngineConfig) -> LoadOptions:
    return LoadOptions(
        quantization=config.quantize,
        dtype=config.dtype,
        device=config.device,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
    )


def _openvino_refusal(config: EngineConfig) -> str | None:
    for name, holds in (
        ("--quantize nf4", config.quantize == "nf4"),
        ("--dtype float16", config.dtype == "float16"),
        ("--allow-pickle", config.allow_pickle),
        ("--trust-remote-code", config.trust_remote_code),
    ):
        if holds:
            return f"{name} is for the torch runner"
    if _is_on_cuda(config):
        return "it runs on CPUs only, and the device is another (--device cpu)"
    if find_spec("openvino") is None:
        return f"openvino is not installed (pip install 'openvino{TESTED}')"
    return None


def _openvino(config: EngineConfig, num_blocks: int | None) -> Runner:
    try:
        from greenllm.runner.openvino.load import KvCacheOptions, build_runner, read_blueprint
    except (ImportError, OSError) as error:
        raise CannotServeError(f"OpenVINO cannot be imported: {error}") from error
    warn_if_untested()
    caches = KvCacheOptions(
        kv_cache_bytes=int(config.kv_cache_gb * 1e9),
        max_num_seqs=config.max_num_seqs,
        kv_dtype=config.kv_dtype,
        weights_dir=config.cache_path,
        num_blocks=num_blocks,
    )
    try:
        plan = read_blueprint(config.model, _options(config), caches)
        check_openvino(config.cache_path, plan)
        runner = build_runner(plan)
    except (UnknownArchitectureError, SelfCheckError) as error:
        raise CannotServeError(str(error)) from error
    # What torch still does per step, reading logits, is too little for a second thread.
    torch.set_num_threads(1)
    if config.block_size not in (None, runner.block_size):
        raise LoadError(
            f"--block-size {config.block_size}: the OpenVINO runner's blocks have"
            f" {runner.block_size} tokens"
        )
    return runner


def _torch_refusal(config: EngineConfig) -> str | None:
    if config.quantize == "int4":
        return "--quantize int4 is for the openvino runner"
    if config.kv_dtype != "auto":
        return "--kv-dtype: it keeps keys and values in the model's dtype"
    return None


def _torch(config: EngineConfig, num_blocks: int | None) -> Runner:
    from greenllm.runner.torch import load_torch_runner

    return load_torch_runner(
        config.model,
        _options(config),
        block_size=config.block_size or _TORCH_BLOCK,
        kv_cache_bytes=int(config.kv_cache_gb * 1e9),
        max_num_seqs=config.max_num_seqs,
        num_blocks=num_blocks,
        eager=config.eager,
    )


# The fastest first.
RUNNERS: Mapping[str, RunnerKind] = {
    "openvino": RunnerKind(_openvino_refusal, _openvino),
    "torch": RunnerKind(_torch_refusal, _torch),
}
