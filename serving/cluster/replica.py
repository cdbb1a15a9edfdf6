"""One replica: the server of one engine, as an actor of Ray Serve.

    Call -> the same app that `greenllm serve` puts behind a socket -> Head, Part, Part, ...

Contract: meters its own machine through the roster that it shares with other replicas there, and
books with the keeper. It is unhealthy, and replaced, once its engine has stopped. When Ray Serve
stops it, it finishes its requests first. It loads the adapters that other replicas have loaded.

Not covered: fine-tuning jobs and files (the front refuses them).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from greenllm.core import GreenllmError
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.machine_roster import private_folder
from greenllm.energy.meters.protocol import Meter
from greenllm.energy.meters.roster import Roster
from greenllm.energy.meters.scope import Scope
from serving.app import create_app
from serving.cluster.asgi import answer_of
from serving.cluster.curve import JoulesCurve
from serving.cluster.remote_ledger import RemoteLedger
from serving.cluster.scaling import STAT
from serving.cluster.wire import PASSED_ON, BodyPart, Call, Head, Ticket
from serving.config import ServeConfig
from serving.server import build, make_state
from serving.state import ServerState

log = logging.getLogger(__name__)
RECORD_EVERY_S = 0.25
_KEEPER_PATIENCE_S = 5.0
_ORPHANED_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Post:
    """What a replica is given: its options, the keeper, and how many CPUs are its own."""

    config: ServeConfig
    keeper: Any
    run: str
    num_cpus: int


class Replica:
    """See the module; methods are called by Ray Serve."""

    async def __init__(self, post: Post) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._post = post
        self._name = serve.get_replica_context().replica_id.unique_id
        self._roster = Roster(run_folder(post.run) / "roster")
        self._ledger = RemoteLedger(post.keeper, str(post.config.ledger_path))
        self._work = run_folder(post.run) / self._name
        self._curve = JoulesCurve(post.config.max_num_seqs)
        self._mark = (0, 0.0, 0)
        self._learnt: set[str] = set()
        self._heard_s = time.monotonic()
        self._app = create_app(self._make_state, post.config)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        await asyncio.to_thread(self._learn_adapters)

    def _make_state(self, loop: asyncio.AbstractEventLoop) -> ServerState:
        config = self._post.config
        scope = Scope(devices=config.gpus, roster=self._roster)
        self._meter, first = open_meter(config, scope)
        parts = build(
            config,
            self._meter,
            first,
            open_books=self._open_books,
            num_cpus=self._post.num_cpus,
        )
        return make_state(
            config,
            parts,
            loop,
            lambda pid, is_training: None,
            workplace=self._work,
            record_every_s=RECORD_EVERY_S,
            totals=self._ledger.totals,
        )

    def _open_books(
        self, config: ServeConfig, meter: Meter, parameters: int
    ) -> tuple[RemoteLedger, str]:
        session_id = f"{self._post.run}-{self._name}"
        actor = ray.get_runtime_context().get_actor_name()
        self._ledger.open_session(
            session_id, actor, method=meter.method, measured=meter.measured, parameters=parameters
        )
        return self._ledger, session_id

    @property
    def _state(self) -> ServerState:
        state: ServerState = self._app.state.server
        return state

    async def http(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | BodyPart]:
        """Answer a request, unless it is meant for another or the engine has stopped."""
        if ticket.target not in (None, self._name) or not self._state.loop.is_alive:
            yield Head(503, (PASSED_ON,))
            yield BodyPart(b"", False)
            return
        async for part in answer_of(self._app, call):
            yield part

    async def describe(self) -> dict[str, Any]:
        """Who this is and what it serves."""
        info, meter = self._state.models.default.info, self._meter
        return {
            "replica": self._name,
            "node": ray.get_runtime_context().get_node_id(),
            "model": self._state.models.default.name,
            "names": self._state.models.default.names,
            "runner": info.runner,
            "method": meter.method,
            "measured": meter.measured,
        }

    async def metrics(self) -> tuple[str, bytes]:
        """Its name and its Prometheus text."""
        return self._name, self._state.metrics.render()

    async def check_health(self) -> None:
        """Fail, for Ray Serve to replace it, once the engine has stopped."""
        if not self._state.loop.is_alive:
            raise RuntimeError("the engine has stopped")
        await asyncio.to_thread(self._learn_adapters)

    def _learn_adapters(self) -> None:
        """Load what replicas have been told to load since, and forget what they have forgotten.

        A keeper that does not answer is being started again; what it knows is learnt next time. One
        that stays away has died with the command: then this deployment is nobody's any more.
        """
        try:
            self._learn(self._wanted())
        except RayError:
            if time.monotonic() - self._heard_s > _ORPHANED_AFTER_S:
                log.warning("the command that started this replica is gone: it ends")
                serve.delete(serve.get_replica_context().app_name, _blocking=False)
        else:
            self._heard_s = time.monotonic()

    def _learn(self, wanted: Mapping[str, str]) -> None:
        adapters = self._state.models.default.engine.adapters
        known = {info.name for info in adapters.list()}
        for name in wanted.keys() - known:
            try:
                adapters.add(name, Path(wanted[name]))
            except GreenllmError as error:
                log.warning("adapter %s: %s", name, error)
        # What has been forgotten meanwhile must not come back.
        self._learnt |= wanted.keys()
        for name in self._learnt - self._wanted().keys():
            self._learnt.discard(name)
            with suppress(GreenllmError):
                adapters.remove(name)

    def _wanted(self) -> Mapping[str, str]:
        asked = self._post.keeper.adapters.remote()
        found: Mapping[str, str] = ray.get(asked, timeout=_KEEPER_PATIENCE_S)
        return found

    def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return self._stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For the autoscaler."""
        return self._stats()

    def _stats(self) -> dict[str, float]:
        """How many requests fill it, by what tokens have cost so far."""
        stats = self._state.models.default.engine.stats()
        in_flight = self._state.bridge.num_in_flight
        booked_j = stats.totals.requests_j + stats.totals.open_j
        tokens, joules = stats.completion_tokens - self._mark[0], booked_j - self._mark[1]
        if tokens > 0:
            self._curve.note((self._mark[2], in_flight), tokens, joules)
            self._mark = (stats.completion_tokens, booked_j, in_flight)
        return {STAT: float(self._curve.full_at)}

    async def __del__(self) -> None:
        """Finish, and close the books; called once by Ray Serve."""
        await self._lifespan.__aexit__(None, None, None)
        self._roster.leave()
        shutil.rmtree(self._work, ignore_errors=True)


def run_folder(run: str) -> Path:
    """Where the replicas of one deployment on this machine have what they share."""
    home = Path(tempfile.gettempdir()) / f"greenllm-{os.getuid()}"
    try:
        folder = private_folder(home) / run
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GreenllmError(f"cannot share {home}: {error}") from error
    return folder


def forget(run: str) -> None:
    """Remove what replicas that were killed here have left."""
    shutil.rmtree(run_folder(run), ignore_errors=True)
