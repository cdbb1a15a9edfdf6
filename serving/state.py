"""The state that routes share: one object, made by the app factory, no globals."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from fastapi import Request as HttpRequest

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GroupSums
from greenllm.energy.ledger_writer import LedgerState
from greenllm.energy.receipt import Receipt
from greenllm.engine.loop import EngineLoop, Recorder
from serving.bodies import Bodies
from serving.bridge import Bridge
from serving.config import ServeConfig
from serving.jobs.files import FileStore
from serving.jobs.runner import JobRunner
from serving.keys.access import Access
from serving.metrics import Metrics
from serving.registry import ServedModels
from serving.supervisor import Supervisor


class ServerLedger(Recorder, Protocol):
    """A ledger, here or elsewhere; see `energy.ledger.Ledger`."""

    @property
    def path(self) -> Path | str:
        """Its file, for people."""

    @property
    def state(self) -> LedgerState:
        """Whether it can be written, and what waits."""

    def receipt(self, request_id: str) -> Receipt | None:
        """One request's receipt."""

    def sums(
        self,
        group_by: str | None = None,
        *,
        since_s: float = 0.0,
        until_s: float = 1e12,
        key: str | None = None,
    ) -> list[GroupSums]:
        """Sums per group."""

    def opened(self, session_id: str, if_lost: Receipt) -> None:
        """Keep a request's receipt, should its process die before it is noted; must not raise."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(slots=True)
class ServerState:
    """A running server."""

    config: ServeConfig
    models: ServedModels
    ledger: ServerLedger
    session_id: str
    loop: EngineLoop
    bridge: Bridge
    metrics: Metrics
    files: FileStore
    jobs: JobRunner
    totals: Callable[[], Totals]
    supervisor: Supervisor
    # What a request's first step would wait for may take seconds: other work has other threads.
    preparing: Executor
    access: Access
    bodies: Bodies
    draining: bool = False

    def record(self, receipt: Receipt) -> None:
        """Book a receipt that does not come from the engine."""
        self.loop.record(receipt)
        self.metrics.observe(receipt)


def state_of(http: HttpRequest) -> ServerState:
    """The server behind a request."""
    return cast(ServerState, http.app.state.server)
