"""Puts a server together and runs it: socket first, then the model, then HTTP.

The port is taken before the model is loaded, so that a port in use costs a second and not a
minute. Everything that can go wrong before serving is a `GreenllmError` of one sentence.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fastapi import FastAPI

from greenllm.core import Token
from greenllm.energy.account.account import Account, Totals
from greenllm.energy.carbon.policy import CarbonPolicy, carbon_policy, embodied_of
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.energy.receipt import Receipt
from greenllm.engine.drafting import Drafting, check_draft_model, make_drafting
from greenllm.engine.loop import EngineLoop
from greenllm.engine.native import Limits, NativeEngine
from greenllm.model.adapter_setup import make_registry
from greenllm.model.files import check_folder
from greenllm.model.options import resolve
from greenllm.runner.base import Runner
from greenllm.runner.registry import load_runner
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.warmup import plan_threads, warm_up
from greenllm.shape import ModelShape
from greenllm.speculation.speculator import Speculator
from greenllm.tokenizer import Tokenizer, load_tokenizer
from greenllm.vllm.engine import VllmEngine
from greenllm.vllm.versions import installed
from serving.app import create_app
from serving.bridge import Bridge
from serving.config import ServeConfig
from serving.front_door import FrontDoor, StartError, take_port
from serving.jobs.files import FileStore
from serving.jobs.runner import JobRunner
from serving.jobs.store import JobStore, TrainingHooks
from serving.metrics import Metrics
from serving.state import Books, ServerState, model_names

log = logging.getLogger(__name__)
OpenBooks = Callable[[ServeConfig, Meter, int], tuple[Books, str]]


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model with its account and ledger, ready to serve."""

    engine: NativeEngine | VllmEngine
    tokenizer: Tokenizer
    ledger: Books
    session_id: str
    threads: ThreadPlan
    drafting: Drafting


def open_ledger(config: ServeConfig, meter: Meter, parameters: int) -> tuple[Ledger, str]:
    """Open the ledger and begin a session.

    Raises:
        StartError: the folder cannot be made.
    """
    path = config.ledger_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot make the data folder {path.parent}: {error.strerror}") from error
    ledger = Ledger(path)
    session_id = f"s-{int(time.time()):x}-{secrets.token_hex(4)}"
    ledger.open_session(
        session_id, method=meter.method, measured=meter.measured, parameters=parameters
    )
    return ledger, session_id


def build(
    config: ServeConfig,
    meter: Meter,
    first: Reading,
    *,
    open_books: OpenBooks = open_ledger,
    num_cpus: int | None = None,
) -> Parts:
    """Load everything a server needs; what the meter counted since `first` is booked as `load`.

    `num_cpus` is how many are this server's; None is all that this process may use.

    Raises:
        GreenllmError: with the reason.
    """
    embodied = embodied_of(config.device, has_cuda=torch.cuda.is_available(), num_cpus=num_cpus)
    policy = carbon_policy(config, embodied)
    check_folder(resolve(config.model), allow_pickle=config.allow_pickle)
    check_draft_model(config)
    tokenizer = load_tokenizer(resolve(config.model), trust_remote_code=config.trust_remote_code)

    def account_of(shape: ModelShape) -> Account:
        return Account(
            meter,
            shape,
            clock=time.monotonic,
            receipt_wait_s=config.receipt_wait_s,
            first=first,
        )

    engine: NativeEngine | VllmEngine
    if config.tensor_parallel > 1 and not is_for_vllm(config):
        raise StartError("--tensor-parallel needs --engine vllm: the native engine has one device")
    if is_for_vllm(config):
        engine, threads, drafting = _load_vllm(
            config if num_cpus is None else _with_threads(config, num_cpus),
            policy,
            tokenizer,
            account_of,
        )
    else:
        engine, threads, drafting = _load_native(
            config, policy, tokenizer, account_of, num_cpus or _num_cpus()
        )
    # What is loaded stays: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    ledger, session_id = open_books(config, meter, engine.info.parameters)
    engine.account.start_serving()
    return Parts(engine, tokenizer, ledger, session_id, threads, drafting)


def _load_native(
    config: ServeConfig,
    policy: CarbonPolicy,
    tokenizer: Tokenizer,
    account_of: Callable[[ModelShape], Account],
    num_cpus: int,
) -> tuple[NativeEngine, ThreadPlan, Drafting]:
    """An engine of greenllm's own, warm."""
    runner = load_runner(config)
    drafting = make_drafting(config, runner)
    account = account_of(runner.shape)
    engine = NativeEngine(
        runner,
        account,
        policy,
        text_stream=tokenizer.stream,
        clock=time.monotonic,
        limits=Limits(
            config.max_num_seqs,
            config.step_tokens(
                on_gpu=runner.info.device.startswith("cuda"),
                context_length=runner.info.context_length,
            ),
            config.prefix_cache,
        ),
        adapters=make_registry(config, runner.lora_targets, model_names(config, runner.info)),
        speculator=drafting.speculator,
    )
    account.rest(time.sleep)
    threads = _plan_threads(config, runner, drafting, num_cpus)
    engine.prepare_default()
    warm_up(runner, account)
    return engine, threads, drafting


def is_for_vllm(config: ServeConfig) -> bool:
    """Whether vLLM serves: where it was asked for, or found on a CUDA device."""
    if config.engine == "auto":
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        return on_gpu and config.runner == "auto" and installed() is not None
    return config.engine == "vllm"


def _with_threads(config: ServeConfig, num_cpus: int) -> ServeConfig:
    """`auto` is all processors for vLLM, of which not all are this server's."""
    return replace(config, threads=str(num_cpus)) if config.threads == "auto" else config


def _load_vllm(
    config: ServeConfig,
    policy: CarbonPolicy,
    tokenizer: Tokenizer,
    account_of: Callable[[ModelShape], Account],
) -> tuple[VllmEngine, ThreadPlan, Drafting]:
    """The same with vLLM, which chooses its threads and guesses itself."""
    from greenllm.vllm.load import load_vllm

    engine = load_vllm(
        config,
        account_of,
        policy,
        text_stream=tokenizer.stream,
        reserved=lambda info: model_names(config, info),
    )
    engine.account.rest(time.sleep)
    threads = ThreadPlan.fixed(torch.get_num_threads())
    return engine, threads, Drafting(Speculator({}, engine.speculation))


def _plan_threads(
    config: ServeConfig, runner: Runner, drafting: Drafting, num_cpus: int
) -> ThreadPlan:
    """Choose threads, also for a draft model."""
    threads = plan_threads(runner, config.threads, num_cpus)
    if drafting.draft_runner is not None:
        plan_threads(drafting.draft_runner, config.threads, num_cpus)
    return threads


def _num_cpus() -> int:
    """CPUs this process may use; what an affinity mask excludes does not count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_state(
    config: ServeConfig,
    parts: Parts,
    loop: asyncio.AbstractEventLoop,
    hooks: TrainingHooks,
    *,
    workplace: Path | None = None,
    record_every_s: float = math.inf,
    totals: Callable[[], Totals] | None = None,
) -> ServerState:
    """Connect the parts on a running event loop.

    Files and jobs are under `workplace`, by default the data folder; `totals` are by default the
    engine's own; for `record_every_s` see `EngineLoop`.
    """
    workplace = workplace or config.data_path
    engine, account = parts.engine, parts.engine.account

    def publish(tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if receipt.status != "provisional":
                metrics.observe(receipt)
        bridge.publish(tokens, receipts)

    def on_failure() -> None:
        loop.call_soon_threadsafe(bridge.break_all)

    engine_loop = EngineLoop(
        engine,
        parts.ledger,
        parts.session_id,
        publish,
        on_failure=on_failure,
        stamp=lambda receipt: bridge.stamped(receipt),
        record_every_s=record_every_s,
    )
    bridge = Bridge(
        loop,
        submit=engine_loop.submit,
        abort=engine_loop.abort,
        max_in_flight=config.max_queue,
    )
    metrics = Metrics(engine.stats, lambda: account.spent_j)
    return ServerState(
        config,
        engine,
        parts.tokenizer,
        parts.ledger,
        engine_loop,
        bridge,
        metrics,
        parts.drafting,
        parts.threads,
        FileStore(workplace / "files"),
        JobRunner(JobStore(workplace / "fine_tuning"), config.adapters_path, hooks.follow),
        hooks,
        totals or (lambda: engine.stats().totals),
    )


def serve(
    config: ServeConfig,
    meter: Meter,
    first: Reading,
    on_ready: Callable[[ServeConfig, Parts, int], None],
    hooks: TrainingHooks,
) -> None:
    """Serve until a signal comes; `on_ready` is told when requests are taken.

    Raises:
        GreenllmError: the server cannot start.
    """
    listener = take_port(config.host, config.port)
    try:
        parts = build(config, meter, first)
        app = create_app(lambda loop: make_state(config, parts, loop, hooks))
        server = FrontDoor(
            app,
            on_ready=lambda: on_ready(config, parts, listener.getsockname()[1]),
            drain_timeout_s=config.drain_timeout_s,
            on_signal=lambda: _stop_taking(app),
            on_drained=lambda: app.state.server.bridge.cancel_all(),
        )
        server.run(sockets=[listener])
    finally:
        listener.close()


def _stop_taking(app: FastAPI) -> None:
    """Connections that are still open get 503 from now on, and `/ready` says so."""
    app.state.server.draining = True
