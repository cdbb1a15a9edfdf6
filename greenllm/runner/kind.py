"""What the registry knows of a runner: which options rule it out, and how it is loaded.

Contract: a kind is found out about without importing what its runner needs. Not covered: how a
runner runs (see `base`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from greenllm.config import EngineConfig
from greenllm.core import GreenllmError
from greenllm.model.options import LoadOptions
from greenllm.runner.base import Runner


class CannotServeError(GreenllmError):
    """This runner cannot serve the model; another may."""


@dataclass(frozen=True, slots=True)
class RunnerKind:
    """`refusal` says why options or machine rule the runner out; None when they do not.

    `load` takes the options and the number of KV blocks; without it there are as many as useful,
    within `--kv-cache-gb`. It raises `CannotServeError`, or `LoadError` where no other runner
    should be tried.
    """

    refusal: Callable[[EngineConfig], str | None]
    load: Callable[[EngineConfig, int | None], Runner]


def load_options(config: EngineConfig) -> LoadOptions:
    """How the model's files are read."""
    return LoadOptions(
        quantization=config.quantize,
        dtype=config.dtype,
        device=config.device,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
    )


def is_on_cuda(config: EngineConfig) -> bool:
    """Whether the model runs on a CUDA device."""
    is_found = config.device == "auto" and torch.cuda.is_available()
    return is_found or config.device.startswith("cuda")
