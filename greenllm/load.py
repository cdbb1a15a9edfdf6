"""The one composition: from options and a meter to an engine that can answer.

The server, the benchmarks and `greenllm.LLM` all load a model here, so that all of them serve and
meter it in the same way.

Contract: `load_engine` books what the meter counted since `first` as `load`, and leaves the engine
warm. Everything that can go wrong is a `GreenllmError` of one sentence.

Not covered: the engine's thread (see `engine.loop`), HTTP.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from greenllm.config import ConfigError
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy, carbon_policy, embodied_of
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.engine.drafting import Drafting, check_draft_model, make_drafting
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.adapter_setup import make_registry
from greenllm.model.files import check_folder
from greenllm.model.info import ModelInfo
from greenllm.model.options import resolve
from greenllm.options import EngineConfig
from greenllm.runner.base import Runner
from greenllm.runner.registry import load_runner
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.warmup import plan_threads, warm_up
from greenllm.served import Served
from greenllm.shape import ModelShape
from greenllm.speculation.speculator import Speculator
from greenllm.tokenizer import Tokenizer, load_tokenizer
from greenllm.vllm.versions import installed


def load_engine(
    config: EngineConfig, meter: Meter, first: Reading | None = None, *, num_cpus: int | None = None
) -> Served:
    """Load a model with everything that its options ask for, and warm it up.

    Args:
        config: the options.
        meter: counts the process's joules; one meter and one account per process.
        first: the reading at which loading began; None is now.
        num_cpus: CPUs that belong to this engine; None is all that this process may use.

    Raises:
        GreenllmError: with the reason.
    """
    first = first or meter.read()
    embodied = embodied_of(config.device, has_cuda=torch.cuda.is_available(), num_cpus=num_cpus)
    policy = carbon_policy(config, embodied)
    source = resolve(config.model)
    check_folder(source, allow_pickle=config.allow_pickle)
    check_draft_model(config)
    tokenizer = load_tokenizer(
        source,
        trust_remote_code=config.trust_remote_code,
        parse_special=config.parse_special,
    )

    def account_of(shape: ModelShape, device: str) -> Account:
        return Account(
            meter,
            shape,
            clock=time.monotonic,
            receipt_wait_s=config.receipt_wait_s,
            first=first,
            needs=("gpu",) if device.startswith("cuda") else (),
        )

    if is_for_vllm(config):
        if num_cpus is not None and config.threads == "auto":
            # For vLLM `auto` is every processor, of which not all belong to this engine.
            config = replace(config, threads=str(num_cpus))
        served = _load_vllm(config, policy, tokenizer, account_of)
    elif config.tensor_parallel > 1:
        why = "--tensor-parallel needs --engine vllm: the native engine has one device"
        raise ConfigError(why, "tensor_parallel")
    else:
        served = _load_native(config, policy, tokenizer, account_of, num_cpus or _num_cpus())
    # The loaded model stays: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    return served


def is_for_vllm(config: EngineConfig) -> bool:
    """Whether vLLM serves: where it was asked for, or found on a CUDA device."""
    if config.engine == "auto":
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        return on_gpu and config.runner == "auto" and installed() is not None
    return config.engine == "vllm"


def _names(config: EngineConfig, info: ModelInfo) -> tuple[str, ...]:
    """Names of the base model; the first is the official one."""
    names = (config.served_model_name, info.name, config.model)
    return tuple(dict.fromkeys(name for name in names if name))


def _load_native(
    config: EngineConfig,
    policy: CarbonPolicy,
    tokenizer: Tokenizer,
    account_of: Callable[[ModelShape, str], Account],
    num_cpus: int,
) -> Served:
    runner = load_runner(config)
    drafting = make_drafting(config, runner)
    account = account_of(runner.shape, runner.info.device)
    names = _names(config, runner.info)
    engine = NativeEngine(
        runner,
        account,
        policy,
        text_stream=tokenizer.stream,
        clock=time.monotonic,
        limits=_limits(config, runner),
        adapters=make_registry(config, runner.lora_targets, names),
        speculator=drafting.speculator,
    )
    account.rest(time.sleep)
    threads = plan_threads(runner, config.threads, num_cpus)
    if drafting.draft_runner is not None:
        plan_threads(drafting.draft_runner, config.threads, num_cpus)
    engine.prepare_default()
    warm_up(runner, account)
    name, *aliases = names
    return Served(name, tuple(aliases), runner.info, engine, tokenizer, drafting, threads)


def _limits(config: EngineConfig, runner: Runner) -> BatchLimits:
    info = runner.info
    step_tokens = config.step_tokens(
        on_gpu=info.device.startswith("cuda"), context_length=info.context_length
    )
    return BatchLimits(config.max_num_seqs, step_tokens, config.prefix_cache)


def _load_vllm(
    config: EngineConfig,
    policy: CarbonPolicy,
    tokenizer: Tokenizer,
    account_of: Callable[[ModelShape, str], Account],
) -> Served:
    """The same with vLLM, which chooses its threads and its draft tokens itself."""
    from greenllm.vllm.load import load_vllm

    engine = load_vllm(
        config,
        account_of,
        policy,
        text_stream=tokenizer.stream,
        reserved=lambda info: _names(config, info),
    )
    engine.account.rest(time.sleep)
    drafting = Drafting(Speculator({}, engine.speculation))
    threads = ThreadPlan.fixed(torch.get_num_threads())
    name, *aliases = _names(config, engine.info)
    return Served(name, tuple(aliases), engine.info, engine, tokenizer, drafting, threads)


def _num_cpus() -> int:
    """CPUs this process may use; those that an affinity mask excludes do not count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
