"""The torch runner's entry in the registry: it serves what no other runner does."""

from __future__ import annotations

from greenllm.config import EngineConfig
from greenllm.runner.base import Runner
from greenllm.runner.kind import RunnerKind, load_options

_BLOCK = 16


def _refusal(config: EngineConfig) -> str | None:
    if config.quantize == "int4":
        return "--quantize int4 is for the openvino runner"
    if config.kv_dtype != "auto":
        return "--kv-dtype: it keeps keys and values in the model's dtype"
    return None


def _load(config: EngineConfig, num_blocks: int | None) -> Runner:
    from greenllm.runner.torch import load_torch_runner

    return load_torch_runner(
        config.model,
        load_options(config),
        block_size=config.block_size or _BLOCK,
        kv_cache_bytes=int(config.kv_cache_gb * 1e9),
        max_num_seqs=config.max_num_seqs,
        num_blocks=num_blocks,
        eager=config.eager,
    )


TORCH = RunnerKind(_refusal, _load)
