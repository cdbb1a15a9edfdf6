"""Which runner serves a model: OpenVINO on CPUs where it knows the architecture, else torch.

`auto` falls back to torch with the reason, in a warning where speed is lost. A runner that was
asked for by name is never replaced: what it cannot do is a `LoadError`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from greenllm.model.spec import UnknownArchitectureError
from greenllm.options import EngineConfig
from greenllm.runner.base import Runner
from greenllm.runner.draft_model import DraftModel, check_same_vocabulary
from greenllm.runner.openvino.machine import TESTED
from greenllm.runner.selfcheck import SelfCheckError, check_openvino, warn_if_untested

if TYPE_CHECKING:
    from greenllm.runner.openvino.runner import OpenVinoRunner
    from greenllm.runner.torch import TorchRunner

log = logging.getLogger(__name__)

_TORCH_BLOCK = 16


def load_runner(
    config: EngineConfig, num_blocks: int | None = None
) -> OpenVinoRunner | TorchRunner:
    """Load the configured model into the runner that suits it, with a cache of so many blocks.

    Without `num_blocks` the cache is as large as useful, within `--kv-cache-gb`.

    Raises:
        LoadError: the model cannot be loaded, or the options contradict each other.
    """
    reason = why_torch(config)
    if config.eager and not _is_on_cuda(config):
        raise LoadError("--eager is for CUDA devices: nowhere else are there graphs to do without")
    if config.quantize == "fp8":
        raise LoadError("--quantize fp8 is vLLM's, on CUDA devices: --engine vllm")
    if reason is None:
        try:
            return _openvino(config, num_blocks)
        except (UnknownArchitectureError, SelfCheckError) as error:
            reason = str(error)
        if config.runner == "openvino" or config.quantize == "int4":
            raise LoadError(f"the OpenVINO runner cannot serve {config.model}: {reason}")
        log.warning("using the slower torch runner: %s", reason)
    elif config.runner == "openvino" or config.quantize == "int4":
        raise LoadError(f"the OpenVINO runner cannot be used: {reason}")
    return _torch(config, num_blocks)


def load_draft_model(config: EngineConfig, target: Runner, folder: str) -> DraftModel:
    """Load a model that guesses for `target`, the runner of the configured model.

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
    return DraftModel(runner, runner.guesser())


def why_torch(config: EngineConfig) -> str | None:
    """Why options or machine rule OpenVINO out; None when they do not."""
    if config.runner == "torch":
        return "--runner torch was asked for"
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


def _is_on_cuda(config: EngineConfig) -> bool:
    return config.device.startswith("cuda") or (config.device == "auto" and _has_cuda())


def _has_cuda() -> bool:
    return torch.cuda.is_available()


def _options(config: EngineConfig) -> LoadOptions:
    return LoadOptions(
        quantization=config.quantize,
        dtype=config.dtype,
        device=config.device,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
    )


def _openvino(config: EngineConfig, num_blocks: int | None) -> OpenVinoRunner:
    try:
        from greenllm.runner.openvino.load import CacheOptions, build_runner, read_blueprint
    except (ImportError, OSError) as error:
        raise SelfCheckError(f"OpenVINO cannot be imported: {error}") from error
    warn_if_untested()
    plan = read_blueprint(
        config.model,
        _options(config),
        CacheOptions(
            kv_cache_bytes=int(config.kv_cache_gb * 1e9),
            max_num_seqs=config.max_num_seqs,
            kv_dtype=config.kv_dtype,
            weights_dir=config.cache_path,
            num_blocks=num_blocks,
        ),
    )
    check_openvino(config.cache_path, plan)
    runner = build_runner(plan)
    # What torch still does per step, reading logits, is too little for a second thread.
    torch.set_num_threads(1)
    if config.block_size not in (None, runner.block_size):
        raise LoadError(
            f"--block-size {config.block_size}: the OpenVINO runner's blocks have"
            f" {runner.block_size} tokens"
        )
    return runner


def _torch(config: EngineConfig, num_blocks: int | None) -> TorchRunner:
    from greenllm.runner.torch import load_torch_runner

    if config.kv_dtype != "auto":
        raise LoadError("--kv-dtype: the torch runner keeps keys and values in the model's dtype")
    return load_torch_runner(
        config.model,
        _options(config),
        block_size=config.block_size or _TORCH_BLOCK,
        kv_cache_bytes=int(config.kv_cache_gb * 1e9),
        max_num_seqs=config.max_num_seqs,
        num_blocks=num_blocks,
        eager=config.eager,
    )
