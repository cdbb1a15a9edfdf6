"""Starts replicas on Ray Serve and serves them from this process until a signal comes.

Contract: without an address Ray runs for this command alone and ends with it; on a cluster only
the application `greenllm` is added and taken away again. The ledger is written on this machine.
Stopping is as with one server: running requests get their time, then all books are closed.

Not covered: several fronts; the front's own joules and Ray's, which are on no bill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    ProxyLocation,
    RequestRouterConfig,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from greenllm.core import GreenllmError
from serving.cluster.front import create_front, drain
from serving.cluster.keeper import Keeper
from serving.cluster.ray_pool import RayPool, is_alive
from serving.cluster.replica import Post, Replica
from serving.cluster.router import PackingRouter
from serving.cluster.scaling import Scaling
from serving.config import ABORT_TIMEOUT_S, ServeConfig
from serving.front_door import FrontDoor, StartError, take_port

log = logging.getLogger(__name__)
APPLICATION = "greenllm"
_STATS_EVERY_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
# What replicas need from the environment that Ray does not hand on by itself.
_HANDED_ON = (
    "OMP_WAIT_POLICY",
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "PYTHONPATH",
)
OnReady = Callable[[ServeConfig, Sequence[Mapping[str, Any]], int], None]


class Cluster:
    """Ray, for as long as the command runs."""

    def __init__(self, config: ServeConfig) -> None:
        self._is_own = config.cluster is None
        _require_answer(config.cluster)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = {
            "num_cpus": (config.replicas or 1) * config.replica_cpus,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
        }
        try:
            ray.init(
                address=config.cluster or "local",
                namespace=APPLICATION,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **(own if self._is_own else {}),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = config.cluster or "a cluster of its own"
            raise StartError(f"--cluster: cannot use {where}: {error}") from error

    def close(self) -> None:
        """Have the replicas finish and close their books."""
        serve.delete(APPLICATION)

    def end(self) -> None:
        """Let go of Ray; a cluster of its own ends with it."""
        ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Ray tries an address for minutes; whether somebody is there shows at once."""
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StartError(f"--cluster: nobody answers at {address}: {error}") from error


def make_keeper(config: ServeConfig, run: str) -> Any:
    """The ledger's keeper, an actor on this machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(Keeper).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
    keeper = made.remote(Path(config.ledger_path).absolute(), run, is_alive)
    ray.get(keeper.totals.remote())  # a ledger that cannot be used is told now
    return keeper


def application(config: ServeConfig, keeper: Any, run: str) -> Any:
    """What Ray Serve is to run."""
    post = Post(
        replace(config, data_dir=Path(config.data_path).absolute()),
        keeper,
        run,
        config.replica_cpus,
    )
    environment = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    needs = {
        "num_cpus": config.replica_cpus,
        "num_gpus": int(config.device.startswith("cuda")),
        "runtime_env": {"env_vars": environment},
    }
    deployed = serve.deployment(Replica).options(
        ray_actor_options=needs,
        max_ongoing_requests=2 * config.max_queue,
        graceful_shutdown_timeout_s=config.drain_timeout_s + ABORT_TIMEOUT_S,
        health_check_period_s=_STATS_EVERY_S,
        request_router_config=RequestRouterConfig(
            request_router_class=PackingRouter,
            request_router_kwargs={"full_at": config.max_num_seqs},
            request_routing_stats_period_s=_STATS_EVERY_S,
        ),
        **_scale(config),
    )
    return deployed.bind(post)


def _scale(config: ServeConfig) -> dict[str, Any]:
    most, least = config.replicas or 1, config.min_replicas
    if least is None or least == most:
        return {"num_replicas": most}
    policy = AutoscalingPolicy(
        policy_function=Scaling, policy_kwargs={"full_at": float(config.max_num_seqs)}
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            initial_replicas=least,
            policy=policy,
            metrics_interval_s=_STATS_EVERY_S,
            look_back_period_s=2 * _STATS_EVERY_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
        )
    }


def run(config: ServeConfig, on_ready: OnReady) -> None:
    """Serve replicas until a signal comes; `on_ready` is told when requests are taken.

    Raises:
        GreenllmError: they cannot start.
    """
    listener = take_port(config.host, config.port)
    try:
        cluster = Cluster(config)
        try:
            run = f"s-{int(time.time()):x}-{secrets.token_hex(3)}"
            keeper = make_keeper(config, run)
            handle = _started(config, keeper, run)
            _serve(config, listener, RayPool(handle, keeper), on_ready)
            cluster.close()
            ray.get(keeper.close.remote())
        finally:
            cluster.end()
    finally:
        listener.close()


def _started(config: ServeConfig, keeper: Any, run: str) -> Any:
    serve.start(proxy_location=ProxyLocation.Disabled)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        return serve.run(application(config, keeper, run), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise GreenllmError(_reason()) from error


def _reason() -> str:
    """Why the application did not start, as Ray Serve knows it."""
    status = serve.status().applications.get(APPLICATION)
    told = [] if status is None else [d.message for d in status.deployments.values()]
    last = " ".join(told).strip().splitlines()
    return f"the replicas did not start: {last[-1] if last else 'see the logs of Ray Serve'}"


def _serve(config: ServeConfig, listener: Any, pool: RayPool, on_ready: OnReady) -> None:
    app = create_front(lambda: pool, config.max_body_mb)

    found = asyncio.run(pool.describe())
    door = FrontDoor(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=round(config.drain_timeout_s) + ABORT_TIMEOUT_S,
        ),
        on_ready=lambda: on_ready(config, found, listener.getsockname()[1]),
        drain_timeout_s=config.drain_timeout_s,
        on_signal=lambda: drain(app),
        on_drained=lambda: None,
    )
    door.run(sockets=[listener])
