"""The OpenVINO runner's entry in the registry: on CPUs, where it knows the architecture."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from greenllm.config import EngineConfig
from greenllm.model.info import LoadError
from greenllm.model.spec import UnknownArchitectureError
from greenllm.runner.base import Runner
from greenllm.runner.kind import CannotServeError, RunnerKind, is_on_cuda, load_options
from greenllm.runner.openvino.machine import TESTED
from greenllm.runner.selfcheck import SelfCheckError, check_openvino, warn_if_untested


def _refusal(config: EngineConfig) -> str | None:
    for name, holds in (
        ("--quantize nf4", config.quantize == "nf4"),
        ("--dtype float16", config.dtype == "float16"),
        ("--allow-pickle", config.allow_pickle),
        ("--trust-remote-code", config.trust_remote_code),
    ):
        if holds:
            return f"{name} is for the torch runner"
    if is_on_cuda(config):
        return "it runs on CPUs only, and the device is another (--device cpu)"
    if find_spec("openvino") is None:
        return f"openvino is not installed (pip install 'openvino{TESTED}')"
    return None


def _load(config: EngineConfig, num_blocks: int | None) -> Runner:
    try:
        runner = _checked(config, num_blocks)
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


def _checked(config: EngineConfig, num_blocks: int | None) -> Runner:
    """The runner, once a model like this one has agreed with torch."""
    try:
        from greenllm.runner.openvino.load import CacheOptions, build_runner, read_blueprint
    except (ImportError, OSError) as error:
        raise SelfCheckError(f"OpenVINO cannot be imported: {error}") from error
    warn_if_untested()
    plan = read_blueprint(
        config.model,
        load_options(config),
        CacheOptions(
            kv_cache_bytes=int(config.kv_cache_gb * 1e9),
            max_num_seqs=config.max_num_seqs,
            kv_dtype=config.kv_dtype,
            weights_dir=config.cache_path,
            num_blocks=num_blocks,
        ),
    )
    check_openvino(config.cache_path, plan)
    return build_runner(plan)


OPENVINO = RunnerKind(_refusal, _load)
