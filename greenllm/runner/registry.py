"""Which runner serves a model: OpenVINO on CPUs where it knows the architecture, else torch.

`auto` takes the first of `RUNNERS` that can, and warns where a slower one is taken because a model
could not be loaded. A runner that was asked for by name is never replaced: what it cannot do is a
`LoadError`. A new runner is its package and an entry here; `EngineConfig.runner` lists the names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from greenllm.config import EngineConfig
from greenllm.model.info import LoadError
from greenllm.runner.base import Runner
from greenllm.runner.draft_model import DraftModel, check_same_vocabulary
from greenllm.runner.kind import CannotServeError, RunnerKind, is_on_cuda
from greenllm.runner.openvino_kind import OPENVINO
from greenllm.runner.torch_kind import TORCH

log = logging.getLogger(__name__)

# The fastest first.
RUNNERS: Mapping[str, RunnerKind] = {"openvino": OPENVINO, "torch": TORCH}


def load_runner(config: EngineConfig, num_blocks: int | None = None) -> Runner:
    """Load the configured model into the runner that suits it, with a cache of so many blocks.

    Without `num_blocks` the cache is as large as useful, within `--kv-cache-gb`.

    Raises:
        LoadError: the model cannot be loaded, or the options contradict each other.
    """
    if config.eager and not is_on_cuda(config):
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
