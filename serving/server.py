"""Puts a server together and runs it: socket first, then the model, then HTTP.

The port is taken before the model is loaded, so that a port in use costs a second and not a
minute. Everything that can go wrong before serving is a `GreenllmError` of one sentence.

Who calls whom: routes -> `intake` -> `EngineLoop` (a queue) -> the engine thread -> `Listeners` ->
`Metrics` and `Bridge` -> the route that waits.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import FastAPI

from greenllm.core import GreenllmError
from greenllm.energy.account.totals import Totals
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.energy.session import open_ledger
from greenllm.engine.loop import RECORD_EVERY_S, EngineLoop
from greenllm.load import load_engine
from greenllm.served import Served
from serving.app import create_app
from serving.bodies import Bodies
from serving.bridge import Bridge, Listeners, QueueLimits
from serving.config import ServeConfig
from serving.front_door import FrontDoor, check_tls, take_port
from serving.intake import cancel_all
from serving.jobs.files import FileStore
from serving.jobs.runner import Follow, JobRunner
from serving.jobs.store import JobStore
from serving.keys.access import Access, open_access
from serving.metrics import Metrics
from serving.registry import ServedModels
from serving.request_log import request_log
from serving.state import ServerLedger, ServerState
from serving.supervisor import Supervisor

_LAST_WORDS_S = 10.0
_PREPARING_THREADS = 2
OpenLedger = Callable[[ServeConfig, Meter, int], tuple[ServerLedger, str]]


class EngineFailedError(GreenllmError):
    """The engine cannot go on, so that the process ends; whatever runs it may start it again."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model with its ledger and the session that it writes there, ready to serve."""

    served: Served
    ledger: ServerLedger
    session_id: str


def build(
    config: ServeConfig,
    meter: Meter,
    first: Reading,
    *,
    open_books: OpenLedger = open_ledger,
    num_cpus: int | None = None,
) -> Parts:
    """Load everything a server needs; what the meter counted since `first` is booked as `load`.

    `num_cpus` is how many are this server's; None is all that this process may use.

    Raises:
        GreenllmError: with the reason.
    """
    served = load_engine(config, meter, first, num_cpus=num_cpus)
    ledger, session_id = open_books(config, meter, served.info.parameters)
    served.engine.account.start_serving()
    return Parts(served, ledger, session_id)


def make_state(
    config: ServeConfig,
    parts: Parts,
    loop: asyncio.AbstractEventLoop,
    follow: Follow,
    *,
    workplace: Path | None = None,
    record_every_s: float = RECORD_EVERY_S,
    totals: Callable[[], Totals] | None = None,
    on_failed: Callable[[str], None] = lambda reason: None,
) -> ServerState:
    """Connect the parts on a running event loop.

    `follow` is told which processes train. Files and jobs are under `workplace`, by default the
    data folder; `totals` are by default the engine's own. For `record_every_s` see `EngineLoop`,
    for `on_failed` `Supervisor`.
    """
    workplace = workplace or config.data_path
    engine = parts.served.engine
    bridge = Bridge(loop, QueueLimits(config.max_queue, config.max_queue_tokens))
    jobs = JobStore(workplace / "fine_tuning", config.quota)
    access = open_access(config, partial(parts.ledger.sums, "key"), jobs.spent_since)
    metrics = Metrics(
        engine.stats,
        lambda: engine.account.spent_j,
        lambda: bridge.num_in_flight,
        lambda: parts.ledger.state,
    )
    engine_loop = EngineLoop(
        engine,
        parts.ledger,
        parts.session_id,
        Listeners(metrics, bridge, access.limiter),
        record_every_s=record_every_s,
    )
    return ServerState(
        config=config,
        models=ServedModels(parts.served),
        ledger=parts.ledger,
        session_id=parts.session_id,
        loop=engine_loop,
        bridge=bridge,
        metrics=metrics,
        files=FileStore(workplace / "files", config.quota, jobs.data_bytes),
        jobs=_job_runner(config, jobs, follow, access),
        totals=totals or (lambda: engine.stats().totals),
        supervisor=Supervisor(
            engine_loop,
            on_failed,
            step_timeout_s=config.step_timeout_s,
            min_free_bytes=config.min_free_memory_mb * 1e6,
        ),
        preparing=ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare"),
        access=access,
        bodies=Bodies(largest_mb=config.max_body_mb, together_mb=config.max_buffered_mb),
    )


def _job_runner(config: ServeConfig, jobs: JobStore, follow: Follow, access: Access) -> JobRunner:
    return JobRunner(
        jobs,
        config.adapters_path,
        follow,
        longest_s=3600 * config.max_job_hours,
        spend=access.limiter.charge,
    )


def serve(
    config: ServeConfig,
    meter: Meter,
    first: Reading,
    on_ready: Callable[[ServeConfig, Parts, int], None],
    follow: Follow,
) -> None:
    """Serve until a signal comes; `on_ready` is told when requests are taken.

    Raises:
        GreenllmError: the server cannot start, or its engine has stopped.
    """
    check_tls(config)
    listener = take_port(config.host, config.port)
    try:
        parts = build(config, meter, first)
        with request_log(config) as log:

            def start(loop: asyncio.AbstractEventLoop) -> ServerState:
                return make_state(config, parts, loop, follow, on_failed=server.fail)

            app = create_app(start, config, log)
            server = FrontDoor(
                app,
                config,
                on_ready=lambda: on_ready(config, parts, listener.getsockname()[1]),
                on_signal=lambda: _stop_taking(app),
                on_drained=lambda: cancel_all(app.state.server),
            )
            server.run(sockets=[listener])
        if server.failure is not None:
            # A thread that hangs in a kernel must not keep the process from ending.
            faulthandler.dump_traceback_later(_LAST_WORDS_S, exit=True)
            raise EngineFailedError(f"the engine has stopped: {server.failure}")
    finally:
        listener.close()


def _stop_taking(app: FastAPI) -> None:
    """Connections that are still open get 503 from now on, and `/ready` says so."""
    app.state.server.draining = True
