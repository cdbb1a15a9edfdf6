"""Puts a server together and runs it: socket first, then the model, then HTTP.

The port is taken before the model is loaded, so that a port in use costs a second and not a
minute. Everything that can go wrong before serving is a `GreenllmError` of one sentence.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from greenllm.core import GreenllmError, Receipt, Token
from greenllm.drafting import Drafting, check_draft_model, make_drafting
from greenllm.energy.account import Account
from greenllm.energy.carbon import EmbodiedModel
from greenllm.energy.grid import CustomIntensity, IntensityTable, StaticIntensity, UnknownZoneError
from greenllm.energy.hardware import read_cpu_info
from greenllm.energy.ledger import Ledger
from greenllm.energy.meter import Meter, Reading
from greenllm.energy.policy import CarbonPolicy
from greenllm.engine import Limits, NativeEngine
from greenllm.engine_loop import EngineLoop
from greenllm.model.adapter_setup import make_registry
from greenllm.model.files import check_folder
from greenllm.model.options import resolve
from greenllm.runner.base import Runner
from greenllm.runner.select import load_runner
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.warmup import plan_threads, warm_up
from greenllm.shape import ModelShape
from greenllm.speculator import Speculator
from greenllm.tokenizer import Tokenizer, load_tokenizer
from greenllm.vllm.engine import VllmEngine
from greenllm.vllm.versions import installed
from serving.app import create_app
from serving.bridge import Bridge
from serving.config import ABORT_TIMEOUT_S, ServeConfig
from serving.file_store import FileStore
from serving.job_runner import JobRunner
from serving.jobs import JobStore, TrainingHooks
from serving.metrics import Metrics
from serving.state import ServerState, model_names

log = logging.getLogger(__name__)


class StartError(GreenllmError):
    """The server cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model with its account and ledger, ready to serve."""

    engine: NativeEngine | VllmEngine
    tokenizer: Tokenizer
    ledger: Ledger
    session_id: str
    threads: ThreadPlan
    drafting: Drafting


def take_port(host: str, port: int) -> socket.socket:
    """Bind the listening socket.

    Raises:
        StartError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise StartError(f"{reason}; choose another --port") from error
    listener.listen(2048)
    return listener


def carbon_policy(config: ServeConfig) -> CarbonPolicy:
    """The configured intensity, PUE and embodied share.

    Raises:
        StartError: the zone is unknown.
    """
    if config.intensity_g_per_kwh is not None:
        value = CustomIntensity(config.intensity_g_per_kwh, config.intensity_source or "")
        return CarbonPolicy(value, config.pue, _embodied(config))
    try:
        intensity = IntensityTable.load().lookup(config.zone)
    except UnknownZoneError as error:
        raise StartError(str(error)) from error
    return CarbonPolicy(StaticIntensity(intensity), config.pue, _embodied(config))


def _embodied(config: ServeConfig) -> EmbodiedModel | None:
    """Known for CPU servers only; with a GPU the figure would be far too low."""
    on_gpu = config.device.startswith("cuda") or torch.cuda.is_available()
    return None if on_gpu else EmbodiedModel.per_vcpu(read_cpu_info().num_vcpus)


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


def build(config: ServeConfig, meter: Meter, first: Reading) -> Parts:
    """Load everything a server needs; what the meter counted since `first` is booked as `load`.

    Raises:
        GreenllmError: with the reason.
    """
    policy = carbon_policy(config)
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

    if is_for_vllm(config):
        return _build_vllm(config, meter, policy, tokenizer, account_of)
    runner = load_runner(config)
    drafting = make_drafting(config, runner)
    account = account_of(runner.shape)
    engine = NativeEngine(
        runner,
        account,
        policy,
        text_stream=tokenizer.stream,
        clock=time.monotonic,
        limits=Limits(config.max_num_seqs, config.max_batch_tokens, config.prefix_cache),
        adapters=make_registry(config, runner.lora_targets, model_names(config, runner.info)),
        speculator=drafting.speculator,
    )
    account.rest(time.sleep)
    threads = _plan_threads(config, runner, drafting)
    engine.prepare_default()
    warm_up(runner, account)
    # What is loaded stays: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    ledger, session_id = open_ledger(config, meter, runner.info.parameters)
    account.start_serving()
    return Parts(engine, tokenizer, ledger, session_id, threads, drafting)


def is_for_vllm(config: ServeConfig) -> bool:
    """Whether vLLM serves: where it was asked for, or found on a CUDA device."""
    if config.engine == "auto":
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        return on_gpu and config.runner == "auto" and installed() is not None
    return config.engine == "vllm"


def _build_vllm(
    config: ServeConfig,
    meter: Meter,
    policy: CarbonPolicy,
    tokenizer: Tokenizer,
    account_of: Callable[[ModelShape], Account],
) -> Parts:
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
    gc.collect()
    gc.freeze()
    ledger, session_id = open_ledger(config, meter, engine.info.parameters)
    engine.account.start_serving()
    threads = ThreadPlan.fixed(torch.get_num_threads())
    drafting = Drafting(Speculator({}, engine.speculation))
    return Parts(engine, tokenizer, ledger, session_id, threads, drafting)


def _plan_threads(config: ServeConfig, runner: Runner, drafting: Drafting) -> ThreadPlan:
    """Choose threads, also for a draft model."""
    threads = plan_threads(runner, config.threads, _num_cpus())
    if drafting.draft_runner is not None:
        plan_threads(drafting.draft_runner, config.threads, _num_cpus())
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
) -> ServerState:
    """Connect the parts on a running event loop."""
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
        FileStore(config.data_path / "files"),
        JobRunner(JobStore(config.data_path / "fine_tuning"), config.adapters_path, hooks.follow),
        hooks,
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
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=round(config.drain_timeout_s) + ABORT_TIMEOUT_S,
            ),
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


class _Server(uvicorn.Server):
    """Tells when it is up, and when running requests have had their time after a signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], None],
        drain_timeout_s: float,
        on_signal: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._drain_timeout_s = drain_timeout_s
        self._on_signal = on_signal
        self._on_drained = on_drained

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests finish; end the rest, each with an answer and a receipt."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._drain_timeout_s, self._on_drained)
        await super().shutdown(sockets)
        alarm.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; uvicorn would raise the signal again at the end, and a clean stop exits with 0."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._on_signal()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as usual, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
