"""The registry of adapters for one base model, from the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from greenllm.model.adapters import AdapterRegistry
from greenllm.model.lora import read_lora
from greenllm.model.lora_layout import inspect_lora
from greenllm.options import EngineConfig


def make_registry(
    config: EngineConfig, targets: Mapping[str, tuple[int, int]], reserved: Collection[str]
) -> AdapterRegistry:
    """A registry that reads adapters which fit `targets`; `reserved` names are the base's own."""
    return AdapterRegistry(
        partial(read_lora, targets=targets),
        partial(inspect_lora, targets=targets),
        home=config.adapters_path,
        roots=config.adapter_dirs,
        budget_bytes=int(config.adapter_cache_mb * 1e6),
        reserved=reserved,
    )
